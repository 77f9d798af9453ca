"""What a convolution reads around each block: voxels of visible neighbours, zeros where they are hidden."""

from itertools import starmap

import torch
from torch import Tensor

from scanfoundry.configs.geometry import Size3D


class Halo:
    """Where each voxel of every block's window lies in a packed map of blocks of `size`.

    A window is a block with `width` voxels around it along each axis. Its rows are numbered in block, d, h, w order,
    as the rows of the packed map are.

    index   (R,) the map's row at each of the R window voxels; any row where there is none
    absent  (A,) window rows that are zero: hidden, or beyond the scan
    rounds  pairs (rows of the map, window rows that are copies of them in another block's window)
    """

    def __init__(self, position: Tensor, sample: Tensor, number: Tensor, grid: Size3D, size: Size3D,
                 width: Size3D) -> None:  # fmt: skip
        self.size, self.width = size, width
        self.window = tuple(b + 2 * w for b, w in zip(size, width, strict=True))
        self.inner = tuple(starmap(slice, ((w, w + b) for b, w in zip(size, width, strict=True))))
        row, known = self._rows(position, sample, number, grid)
        self.index = row.masked_fill(~known, 0).flatten()
        self.absent = (~known).flatten().nonzero().squeeze(1)
        known[(slice(None), *self.inner)] = False  # what is left is copied from another block
        self.rounds = self._rounds(known.flatten().nonzero().squeeze(1))

    def _rows(self, position: Tensor, sample: Tensor, number: Tensor, grid: Size3D) -> tuple[Tensor, Tensor]:
        """The map's row at each window voxel, and whether there is one: (N, *window)."""
        block, within = sample.view(-1, 1, 1, 1), torch.zeros_like(sample).view(-1, 1, 1, 1)
        inside = torch.ones_like(block, dtype=torch.bool)
        for axis, (b, w, n) in enumerate(zip(self.size, self.width, grid, strict=True)):
            at = torch.arange(-w, b + w, device=position.device) + b * position[:, axis, None]  # voxels of the scan
            of = at.div(b, rounding_mode="floor")
            shape = [-1, 1, 1, 1]
            shape[1 + axis] = at.shape[1]
            block = block * n + of.clamp(0, n - 1).view(shape)
            within = within * b + (at - b * of).view(shape)
            inside = inside & ((of >= 0) & (of < n)).view(shape)
        place = number[block]
        return place * (self.size[0] * self.size[1] * self.size[2]) + within, inside & (place >= 0)

    def _rounds(self, copies: Tensor) -> list[tuple[Tensor, Tensor]]:
        """No round has a row of the map twice, so that `scatter` adds in the same order on every device."""
        origin, order = self.index[copies].sort(stable=True)
        copies = copies[order]
        turn = torch.arange(len(origin), device=origin.device) - torch.searchsorted(origin, origin)
        rounds = int(turn.max()) + 1 if len(turn) else 0
        return [(origin[turn == each], copies[turn == each]) for each in range(rounds)]

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
