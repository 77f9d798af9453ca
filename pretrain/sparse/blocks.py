"""Which blocks of a batch are visible, and scans packed into them and back.

A packed map holds the visible blocks of all samples, one after another: (N, d, h, w, C), contiguous, where (d, h, w)
is the size of a block at the map's resolution; 2D has depth 1. Hidden blocks take neither memory nor time. The
blocks are an argument all the way, never global state: two views, threads and activation checkpointing cannot mix
them up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.sparse.halo import Halo, reach_of


class ActiveBlocks:
    """The visible blocks of a batch; samples may have different numbers of them.

    All that depends on which blocks those are is found on the host; the device gets tables of known length.

    grid      blocks (d, h, w) of a scan
    sample    (N,) int64, which sample of the batch a block is of; ascending
    position  (N, 3) int64, where in the scan's grid it is
    count     (B,) int64, visible blocks of each sample
    """

    def __init__(self, visible: Tensor, device: torch.device | None = None) -> None:
        """The blocks of a mask.

        Args:
            visible: (B, 1, d, h, w) bool. Where it lies on a device, it is fetched, for which the host waits.
            device: of the maps; None: where `visible` is.

        Raises:
            ValueError: no block is visible.
        """
        self.device = visible.device if device is None else device
        visible = visible.cpu()
        self.batch = visible.shape[0]
        self.grid: Size3D = (visible.shape[2], visible.shape[3], visible.shape[4])
        where = visible[:, 0].nonzero()
        if not len(where):
            raise ValueError("no block is visible")
        flat = visible.flatten()
        self._where_on_host = where  # (N, 4): sample, d, h, w
        self._numbers = (flat.cumsum(0) - 1).masked_fill(~flat, -1).view(visible.shape[0], *self.grid)
        table = to_device(where, self.device)
        self.sample, self.position = table[:, 0], table[:, 1:]
        self.count = to_device(visible.flatten(1).sum(1), self.device)
        self._halos: dict[tuple[Size3D, Size3D], Halo] = {}

    def halo(self, size: Size3D, width: Size3D) -> Halo:
        """The windows of blocks of `size` voxels with `width` voxels around them, made once for all layers."""
        if (size, width) not in self._halos:
            neighbours = self._neighbours(reach_of(size, width))
            self._halos[size, width] = Halo(neighbours, size, width, self.device)
        return self._halos[size, width]

    def _neighbours(self, reach: Size3D) -> Tensor:
        """The blocks (N, K) int64 within `reach` blocks of each, itself among them, in d, h, w order; -1: none."""
        around = [side for each in reversed(reach) for side in (each, each)]
        numbers = F.pad(self._numbers, around, value=-1)
        steps = torch.cartesian_prod(*(torch.arange(2 * each + 1) for each in reach))  # (K, 3)
        at = self._where_on_host[:, 1:, None] + steps.T  # (N, 3, K)
        return numbers[self._where_on_host[:, :1], at[:, 0], at[:, 1], at[:, 2]]

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
