"""Whole scans through networks that were trained on patches: windows in order along one axis, finished planes out.

Only a slab of one patch's length is held, so the memory does not grow with the scan's length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.finetune.inference.slab import Place, Slab

Network = Callable[[Tensor], Tensor]

SPREAD = 1 / 8  # standard deviation of a window's weights, as a share of its length (Isensee et al. 2021)
LEAST_WEIGHT = 1e-3  # so that the corners of a window count where no other window reaches


@dataclass(frozen=True)
class Tiling:
    """How a scan is cut into windows.

    Attributes:
        patch: (D, H, W) of a window in voxels.
        overlap: share of its length that a window has in common with the next.
        mirrors: axes 0 to 2 that are flipped together, for each look at a window.
        batch: windows that go through the network at a time.
    """

    patch: PositiveSize3D
    overlap: float
    mirrors: Sequence[tuple[int, ...]] = ((),)
    batch: int = 1


def stream_order(shape: Place, patch: PositiveSize3D) -> Place:
    """Axes with that along which the slab moves in front: the one with most patches, which leaves the smallest slab."""
    axis = max(range(3), key=lambda axis: shape[axis] / patch[axis])
    second, third = (other for other in range(3) if other != axis)
    return axis, second, third


def permuted(shape: Place, order: Place) -> Place:
    """The lengths of the axes in another order."""
    a, b, c = (shape[axis] for axis in order)
    return a, b, c


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of as few windows as keep the overlap, spread evenly and the same from either end (nnU-Net)."""
    gap = max(0, size - patch)
    steps = -(-gap // max(1, int(patch * (1 - overlap))))
    if not steps:
        return [0]
    half = [(2 * i * gap + steps) // (2 * steps) for i in range(steps // 2 + 1)]
    return half + [gap - half[i] for i in range(steps - len(half), -1, -1)]


def window_weights(patch: PositiveSize3D) -> Tensor:
    """Weights of a window's voxels, (D, H, W): a Gaussian about the middle, 1 there."""
    d, h, w = (torch.exp(-((torch.arange(n) - (n - 1) / 2) ** 2) / (2 * (n * SPREAD) ** 2)) for n in patch)
    bell = d[:, None, None] * h[:, None] * w
    return bell.clamp_min(max(float(bell.min()), LEAST_WEIGHT))


@torch.inference_mode()
def stream_scores(
    members: Sequence[Network], image: Tensor, fill: float, tiling: Tiling, device: torch.device
) -> Iterator[Tensor]:
    """Logits of every member, some planes at a time, first to last.

    Each window's logits are the mean over its mirrorings; a voxel's are the mean over its windows, weighted by a
    Gaussian about their middle (Isensee et al. 2021). An axis shorter than the patch is padded with `fill` on both
    sides, and cut back. A member does not see the others: how they are joined is for the caller to say.

    Args:
        members: networks in evaluation mode.
        image: (C, D, H, W).
        fill: the value outside it.
        tiling: how it is cut.
        device: where the networks are.

    Yields:
        (M, K, n, ., .): the three spatial axes come in `stream_order`; the planes lie across the first of them.
    """
    d, h, w = image.shape[1:]
    order = stream_order((d, h, w), tiling.patch)
    weight = window_weights(tiling.patch)[_inside(image, tiling.patch)].permute(order)
    slab = Slab(weight, permuted((d, h, w), order), device)
    first, second, third = (window_starts(image.shape[1 + a], tiling.patch[a], tiling.overlap) for a in order)
    every = list(product(first, second, third))
    for places in (every[i : i + tiling.batch] for i in range(0, len(every), tiling.batch)):
        windows = torch.stack([_window(image, fill, _as_dhw(place, order), tiling.patch) for place in places])
        scores = _logits(members, windows.to(device), tiling.mirrors)
        scores = scores[..., *_inside(image, tiling.patch)].permute(0, 1, 2, *(3 + a for a in order))
        for number, place in enumerate(places):
            yield from slab.finish(place[0])
            slab.add(scores[:, number], place)
    yield from slab.finish(slab.extent[0])


def _logits(members: Sequence[Network], windows: Tensor, mirrors: Sequence[tuple[int, ...]]) -> Tensor:
    """Windows (B, C, *patch) -> (M, B, K, *patch) float32.

    The networks run in bfloat16 on a GPU, elsewhere only inside a caller's own autocast.
    """
    kind, found = windows.device.type, []
    half = kind == "cuda" or torch.is_autocast_enabled(kind)
    for model in members:
        total: Tensor | None = None
        for axes in mirrors:
            spatial = [axis + 2 for axis in axes]
            with torch.autocast(kind, torch.bfloat16, enabled=half):
                logits = model(windows.flip(spatial) if axes else windows).float()
            logits = logits.flip(spatial) if axes else logits
            total = logits if total is None else total + logits
        assert total is not None
        found.append(total if len(mirrors) == 1 else total / len(mirrors))
    return found[0][None] if len(found) == 1 else torch.stack(found)


def _as_dhw(place: Place, order: Place) -> list[int]:
    return [place[order.index(axis)] for axis in range(3)]


def _inside(image: Tensor, patch: PositiveSize3D) -> tuple[slice, slice, slice]:
    """The part of a padded window that is scan."""
    d, h, w = (
        slice(max(0, p - n) // 2, max(0, p - n) // 2 + min(p, n)) for n, p in zip(image.shape[1:], patch, strict=True)
    )
    return d, h, w


def _window(image: Tensor, fill: float, start: Sequence[int], patch: PositiveSize3D) -> Tensor:
    """(C, *patch) of the image, padded where it is smaller."""
    part = image[:, *(slice(at, at + size) for at, size in zip(start, patch, strict=True))]
    padding: list[int] = []
    for inside, size in zip(reversed(_inside(image, patch)), reversed(patch), strict=True):
        padding += [inside.start, size - inside.stop]
    return F.pad(part, padding, value=fill)
