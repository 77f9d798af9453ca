"""What a convolution reads around each block: voxels of visible neighbours, zeros where they are hidden."""

from functools import lru_cache
from itertools import starmap
from typing import NamedTuple

import torch
from torch import Tensor

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.device import to_device


class Window(NamedTuple):
    """The W voxels of a block's window, in d, h, w order, whatever is hidden.

    Attributes:
        of: (W,) int64, in which of the neighbours of `reach_of` a voxel lies, numbered in d, h, w order.
        within: (W,) int64, its row in that neighbour.
        border: (M,) int64, the voxels that do not lie in the block itself.
        turn: (M,) int64, of a voxel of the border, how many blocks before this one may hold a copy of the same voxel.
    """

    of: Tensor
    within: Tensor
    border: Tensor
    turn: Tensor


def reach_of(size: Size3D, width: Size3D) -> Size3D:
    """How many blocks of `size` voxels to either side a halo of `width` voxels reaches, along each axis."""
    d, h, w = (-(-around // block) for block, around in zip(size, width, strict=True))
    return d, h, w


@lru_cache(maxsize=64)
def window_of(size: Size3D, width: Size3D) -> Window:
    """The window of a block of `size` voxels with `width` voxels around it."""
    of, within = (torch.zeros(1, 1, 1, dtype=torch.int64) for _ in range(2))
    for axis, (block, around, reach) in enumerate(zip(size, width, reach_of(size, width), strict=True)):
        shape = [1, 1, 1]
        shape[axis] = -1
        at = torch.arange(-around, block + around)
        neighbour = at.div(block, rounding_mode="floor")
        of = of * (2 * reach + 1) + (neighbour + reach).view(shape)
        within = within * block + (at - block * neighbour).view(shape)
    of, within = of.flatten(), within.flatten()
    itself = (of.max() + of.min()) // 2
    border = (of != itself).nonzero().squeeze(1)
    # The farther on a neighbour lies, the earlier among all blocks is the one whose window reaches into it.
    order = (within[border] * (int(of.max()) + 1) - of[border]).argsort()
    voxel = within[border][order]
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(order)) - torch.searchsorted(voxel, voxel)
    return Window(of, within, border, turn)


@lru_cache(maxsize=64)
def _rows_on(size: Size3D, width: Size3D, device: torch.device) -> tuple[Tensor, Tensor]:
    window = window_of(size, width)
    return to_device(window.of, device), to_device(window.within, device)


class Halo:
    """Where each voxel of every block's window lies in a packed map of blocks of `size`.

    A window is a block with `width` voxels around it along each axis. Its rows are numbered in block, d, h, w order,
    as the rows of the packed map are. Whatever depends on which blocks are hidden is found on the host, where its
    length is known without waiting for a device.

    index   (R,) the map's row at each of the R window voxels; any row where there is none
    absent  (A,) window rows that are zero: hidden, or beyond the scan
    rounds  pairs (rows of the map, window rows that are copies of them in another block's window)
    """

    def __init__(self, neighbours: Tensor, size: Size3D, width: Size3D, device: torch.device) -> None:
        """neighbours: (N, K) int64 on the host, the number of each block's neighbour at every place within
        `reach_of(size, width)`, in d, h, w order; -1 where it is hidden or beyond the scan."""
        self.size, self.width = size, width
        self.window = tuple(b + 2 * w for b, w in zip(size, width, strict=True))
        self.inner = tuple(starmap(slice, ((w, w + b) for b, w in zip(size, width, strict=True))))
        of, within = _rows_on(size, width, device)
        places = to_device(neighbours.clamp(min=0), device).index_select(1, of)
        self.index = places.mul_(size[0] * size[1] * size[2]).add_(within).flatten()
        absent, rounds = _copies(neighbours, window_of(size, width), size[0] * size[1] * size[2])
        tables = [absent, *(table for pair in rounds for table in pair)]
        on_device = to_device(torch.cat(tables), device).split([len(table) for table in tables])  # in one copy
        self.absent, self.rounds = on_device[0], list(zip(on_device[1::2], on_device[2::2], strict=True))

    def gather(self, x: Tensor) -> Tensor:
        """Packed map (N, *size, C) -> windows (N, *window, C)."""
        rows = x.reshape(-1, x.shape[-1]).index_select(0, self.index)
        return rows.index_fill_(0, self.absent, 0).view(len(x), *self.window, x.shape[-1])

    def scatter(self, windows: Tensor) -> Tensor:
        """The transpose of `gather`: (N, *window, C) -> (N, *size, C), copies added to what they are copies of."""
        inner = windows[(slice(None), *self.inner)].contiguous()
        rows, copies = inner.view(-1, inner.shape[-1]), windows.reshape(-1, windows.shape[-1])
        for origin, each in self.rounds:
            rows.index_copy_(0, origin, rows.index_select(0, origin).add_(copies.index_select(0, each)))
        return inner


def _copies(neighbours: Tensor, window: Window, voxels: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """`absent` and `rounds` of a halo of blocks of so many voxels, on the host.

    No round has a row of the map twice, and those that copy one row follow each other in the order of their blocks, so
    that `scatter` adds in the same order on every device.
    """
    place = neighbours.index_select(1, window.of[window.border])  # (N, M)
    hidden = place < 0
    rows = torch.arange(len(place)).unsqueeze(1) * len(window.of) + window.border
    origin = place * voxels + window.within[window.border]
    rounds = []
    for each in range(int(window.turn.max()) + 1 if len(window.turn) else 0):
        chosen = (window.turn == each).nonzero().squeeze(1)
        there = ~hidden.index_select(1, chosen)
        pair = (origin.index_select(1, chosen)[there], rows.index_select(1, chosen)[there])
        if len(pair[0]):
            rounds.append(pair)
    return rows[hidden], rounds
