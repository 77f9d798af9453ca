"""Whole scans through networks that were trained on patches: windows in order along one axis, finished planes out.

Only a slab of one patch's length is held, so the memory does not grow with the scan's length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from scanforge.finetune.config import Size
from scanforge.finetune.monai_parts import compute_importance_map

Network = Callable[[Tensor], Tensor]
PIECE = 1 << 24  # numbers that finished planes leave in at a time
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Tiling:
    """How a scan is cut: windows of `patch` voxels that share `overlap` of their length with the next, `batch` at a
    time through the network, each as often as there are `mirrors` (axes 0 to 2 that are flipped together)."""

    patch: Size
    overlap: float
    mirrors: Sequence[tuple[int, ...]] = ((),)
    batch: int = 1


def stream_order(shape: Place, patch: Size) -> Place:
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


@torch.inference_mode()
def stream_scores(
    members: Sequence[Network], image: Tensor, fill: float, tiling: Tiling, device: torch.device
) -> Iterator[Tensor]:
    """Logits of every member for the image (C, D, H, W), some planes (M, K, n, ., .) at a time, first to last.

    The three spatial axes come in `stream_order`; the planes lie across the first of them.
    Each window's logits are the mean over its mirrorings; a voxel's are the mean over its windows, weighted by a
    Gaussian about their middle (Isensee et al. 2021). An axis shorter than the patch is padded with `fill` on both
    sides, and cut back. A member does not see the others: how they are joined is for the caller to say.
    """
    d, h, w = image.shape[1:]
    order = stream_order((d, h, w), tiling.patch)
    weight = compute_importance_map(tiling.patch, mode="gaussian", sigma_scale=0.125)
    weight = weight[_inside(image, tiling.patch)].permute(order)
    slab = _Slab(weight, permuted((d, h, w), order), device)
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


class _Slab:
    """Weighted sums over the planes that a window may still touch; plane p lies at p modulo the slab's length."""

    def __init__(self, weight: Tensor, extent: Place, device: torch.device) -> None:
        self.weight, self.extent, self.device = weight, extent, device
        self.length = weight.shape[0]
        self.first = 0  # plane that is not finished yet
        self.sums: Tensor | None = None  # M K length . .
        self.weights = torch.zeros(self.length, *extent[1:])

    def _allocated(self, scores: Tensor) -> Tensor:
        if self.sums is None:
            shape = (*scores.shape[:2], self.length, *self.extent[1:])
            at = self.device if _fits(shape, self.device) else torch.device("cpu")
            self.sums = torch.zeros(shape, device=at)
            self.weight, self.weights = self.weight.to(at), self.weights.to(at)
        return self.sums

    def add(self, scores: Tensor, place: Place) -> None:
        """Scores (M, K, length, ., .) of the window whose first voxel is `place`."""
        sums = self._allocated(scores)
        scores = scores.to(sums.device) * self.weight
        across = tuple(slice(at, at + n) for at, n in zip(place[1:], self.weight.shape[1:], strict=True))
        turn = place[0] % self.length
        # Up to the end of the ring, then from its beginning.
        for planes, source in (
            (slice(turn, self.length), slice(0, self.length - turn)),
            (slice(0, turn), slice(self.length - turn, self.length)),
        ):
            sums[:, :, planes, *across] += scores[:, :, source]
            self.weights[planes, *across] += self.weight[source]

    def finish(self, stop: int) -> Iterator[Tensor]:
        """The planes before `stop` that were not given out yet, in pieces; their room is free for later planes."""
        while self.first < stop:
            assert self.sums is not None
            sums, n_each = self.sums, self.sums[:, :, 0].numel()
            count = min(stop - self.first, max(1, PIECE // n_each))
            where = torch.arange(self.first, self.first + count, device=sums.device) % self.length
            piece = sums.index_select(2, where).div_(self.weights.index_select(0, where))
            sums.index_fill_(2, where, 0)
            self.weights.index_fill_(0, where, 0)
            self.first += count
            yield piece


def _fits(shape: Sequence[int], device: torch.device) -> bool:
    """Whether the slab takes at most half of what the GPU has left; the rest is the network's."""
    if device.type != "cuda":
        return True
    return torch.Size(shape).numel() * 4 * 2 < torch.cuda.mem_get_info(device)[0]


def _logits(members: Sequence[Network], windows: Tensor, mirrors: Sequence[tuple[int, ...]]) -> Tensor:
    """Windows (B, C, *patch) -> (M, B, K, *patch) float32."""
    found = []
    for model in members:
        total: Tensor | None = None
        for axes in mirrors:
            spatial = [axis + 2 for axis in axes]
            with torch.autocast(windows.device.type, torch.bfloat16, enabled=windows.device.type == "cuda"):
                logits = model(windows.flip(spatial)).float().flip(spatial)
            total = logits if total is None else total + logits
        assert total is not None
        found.append(total / len(mirrors))
    return torch.stack(found)


def _as_dhw(place: Place, order: Place) -> list[int]:
    return [place[order.index(axis)] for axis in range(3)]


def _inside(image: Tensor, patch: Size) -> tuple[slice, slice, slice]:
    """The part of a padded window that is scan."""
    d, h, w = (
        slice(max(0, p - n) // 2, max(0, p - n) // 2 + min(p, n)) for n, p in zip(image.shape[1:], patch, strict=True)
    )
    return d, h, w


def _window(image: Tensor, fill: float, start: Sequence[int], patch: Size) -> Tensor:
    """(C, *patch) of the image, padded where it is smaller."""
    part = image[:, *(slice(at, at + size) for at, size in zip(start, patch, strict=True))]
    padding: list[int] = []
    for inside, size in zip(reversed(_inside(image, patch)), reversed(patch), strict=True):
        padding += [inside.start, size - inside.stop]
    return F.pad(part, padding, value=fill)
