"""Features of a teacher that a student learns to give: projected, brought to one grid, compared by their directions.

In the spirit of ScaleKD (Fan et al. 2024, arXiv 2411.06786): the student's features pass a learned projection, and only
the teacher's directions count, so that two networks of other widths, scales and families can be compared.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.protocol import masked_mean


def normalised_l2(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of two vectors of length 1, which is 2 - 2 cos, for each place.

    Args:
        given: (B, F, ...), of any length.
        wanted: the same of the teacher.

    Returns:
        (B, ...), from 0 to 4, in float32 at least.
    """
    wide = torch.promote_types(given.dtype, torch.float32)
    return 2 - 2 * F.cosine_similarity(given.to(wide), wanted.to(wide), dim=1, eps=1e-6)


def to_grid(features: Tensor, like: Tensor) -> Tensor:
    """Feature maps (B, F, d, h, w) interpolated to the grid of `like`, trilinearly, where it is another."""
    if features.shape[2:] == like.shape[2:]:
        return features
    return F.interpolate(features, size=like.shape[2:], mode="trilinear", align_corners=False)


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """What modules give within the context, in the order in which they are called."""
    found: list[Any] = []

    def keep(module: nn.Module, inputs: object, output: Any) -> None:
        found.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class FeatureMatch(nn.Module):
    """Compares the deepest features of a student with those of a teacher, place by place and as a whole.

    Args:
        channels: of the student's deepest level.
        wanted: of the teacher's.
    """

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.dense = DepthFreeConv3d(channels, wanted, 1)
        self.pooled = nn.Linear(channels, wanted)

    def forward(self, features: Tensor, wanted: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`normalised_l2` of every place of the teacher's grid, and of the means over space.

        Args:
            features: (B, F, d, h, w) of the student.
            wanted: (B, G, d', h', w') of the teacher, for the same scans.
            valid: (B, 1, D, H, W) bool, False on voxels that the means leave out.

        Returns:
            (B, d', h', w') and (B,).
        """
        places = normalised_l2(to_grid(self.dense(features), wanted), wanted)
        whole = normalised_l2(self.pooled(masked_mean(features, valid)), masked_mean(wanted, valid))
        return places, whole
