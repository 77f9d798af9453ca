"""Levels of a convolutional encoder: their strides, their features, and the sizes that leave something to normalise."""

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D

Stride = tuple[Literal[1, 2], Literal[1, 2], Literal[1, 2]]


def context_features(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Outputs of all stages in turn, finest first."""
    features = []
    for stage in stages:
        x = stage(x)
        features.append(x)
    return features


def cumulative(strides: Iterable[Size3D], is_2d: bool) -> tuple[Size3D, ...]:
    """Strides (D, H, W) of all levels from the input, finest first.

    Args:
        strides: of each level but the first, from the level before it.
        is_2d: whether the scans have depth 1, on which a depth stride has no effect.
    """
    levels: list[Size3D] = [(1, 1, 1)]
    for d, h, w in strides:
        depth, height, width = levels[-1]
        levels.append((1 if is_2d else depth * d, height * h, width * w))
    return tuple(levels)


def check_normalisable(shape: Size3D, total: Size3D, network: str, advice: str) -> None:
    """Refuse scans of which one voxel is left at the deepest level: a norm over space then has no variance.

    Args:
        shape: of the scan, (D, H, W).
        total: the stride (D, H, W) of the deepest level.
        network: its name, for the message.
        advice: what the user may do, for the message.

    Raises:
        UserError: one voxel is left.
    """
    if all(size <= stride for size, stride in zip(shape, total, strict=True)):
        axes = zip("DHW", shape, total, strict=True)
        allowed = " or ".join(f"{a} >= {t + 1}" for a, s, t in axes if not (a == "D" and s == 1))
        raise UserError(
            f"a scan of (D, H, W) = {tuple(shape)} is too small for {network} of total stride {total}: "
            f"allowed is {allowed}; {advice}"
        )
