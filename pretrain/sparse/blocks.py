"""Which blocks of a batch are visible, and scans packed into them and back.

A packed map holds the visible blocks of all samples, one after another: (N, d, h, w, C), contiguous, where (d, h, w)
is the size of a block at the map's resolution; 2D has depth 1. Hidden blocks take neither memory nor time. The
blocks are an argument all the way, never global state: two views, threads and activation checkpointing cannot mix
them up.
"""

import torch
from torch import Tensor

from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.sparse.halo import Halo


class ActiveBlocks:
    """The visible blocks of a batch; samples may have different numbers of them.

    grid      blocks (d, h, w) of a scan
    sample    (N,) int64, which sample of the batch a block is of; ascending
    position  (N, 3) int64, where in the scan's grid it is
    number    (B * d * h * w,) int64, a block's place in the packed map; -1 where it is hidden
    count     (B,) int64, visible blocks of each sample
    """

    def __init__(self, visible: Tensor) -> None:
        """visible: (B, 1, d, h, w) bool; ValueError where no block is."""
        self.batch = visible.shape[0]
        self.grid: Size3D = (visible.shape[2], visible.shape[3], visible.shape[4])
        where = visible[:, 0].nonzero()
        if not len(where):
            raise ValueError("no block is visible")
        self.sample, self.position = where[:, 0], where[:, 1:]
        flat = visible.flatten()
        self.number = (flat.cumsum(0) - 1).masked_fill(~flat, -1)
        self.count = visible.flatten(1).sum(1)
        self._halos: dict[tuple[Size3D, Size3D], Halo] = {}

    def halo(self, size: Size3D, width: Size3D) -> Halo:
        """The windows of blocks of `size` voxels with `width` voxels around them, made once for all layers."""
        if (size, width) not in self._halos:
            self._halos[size, width] = Halo(self.position, self.sample, self.number, self.grid, size, width)
        return self._halos[size, width]

    def mean(self, sums: Tensor, voxels: int) -> Tensor:
        """Means over each sample's blocks of `voxels` voxels, given to each block: sums of the blocks (N, C) -> (N, C).

        In a fixed order, which `index_add_` on a GPU does not keep.
        """
        totals = torch.segment_reduce(sums, "sum", lengths=self.count, axis=0, unsafe=True)
        return (totals / (self.count[:, None] * voxels))[self.sample]

    def pack(self, x: Tensor) -> Tensor:
        """Dense (B, C, D, H, W) -> packed (N, d, h, w, C)."""
        d, h, w = (n // g for n, g in zip(x.shape[2:], self.grid, strict=True))
        return self._cut(x.movedim(1, -1), (d, h, w))[self._where()].contiguous()

    def unpack(self, x: Tensor, fill: Tensor) -> Tensor:
        """Packed (N, d, h, w, C) -> dense (B, C, D, H, W), channels last in memory, with `fill` (C,) where hidden."""
        size = (x.shape[1], x.shape[2], x.shape[3])
        shape = [n * b for n, b in zip(self.grid, size, strict=True)]
        dense = fill.to(x.dtype).expand(self.batch, *shape, -1).clone()
        self._cut(dense, size)[self._where()] = x
        return dense.movedim(-1, 1)

    def _where(self) -> tuple[Tensor, ...]:
        return (self.sample, *self.position.unbind(1))

    def _cut(self, x: Tensor, size: Size3D) -> Tensor:
        """(B, D, H, W, C) as blocks, without a copy where it can be: (B, grid d, h, w, block d, h, w, C)."""
        (d, h, w), (bd, bh, bw) = self.grid, size
        return x.reshape(x.shape[0], d, bd, h, bh, w, bw, x.shape[-1]).permute(0, 1, 3, 5, 2, 4, 6, 7)
