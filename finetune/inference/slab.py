"""Weighted sums over a few planes of a volume, those that are still growing."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 1 << 24  # numbers that finished planes leave in at a time
Place = tuple[int, int, int]


class Slab:
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
