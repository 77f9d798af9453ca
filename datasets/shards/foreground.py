"""A coarse map of where a scan has something to look at, so that crops avoid air."""

import numpy as np
from numpy.typing import NDArray

CELLS = 16
_SLAB = 1 << 18  # voxels that are looked at together
_SMALLEST = 4  # voxels along a cell of a small scan: finer than that, the map is noise
_SHARE = 0.25  # of a cell's voxels above the threshold makes the cell foreground


def cell_edges(length: int, cells: int, cell: int) -> tuple[int, int]:
    """First voxel of cell number `cell` of `cells` along an axis of `length` voxels, and the end."""
    return cell * length // cells, (cell + 1) * length // cells


def foreground_bitmap(voxels: NDArray, threshold: float) -> NDArray[np.bool_]:
    """Which cells of a scan (C, D, H, W) hold tissue: up to 16 along each axis, of at least 4 voxels.

    A cell does where a quarter of its voxels (of any channel) is above `threshold` (`statistics(...)['threshold']`).
    """
    shape = voxels.shape[1:]
    cells = [min(CELLS, max(1, length // _SMALLEST)) for length in shape]
    edges = [np.arange(count + 1) * length // count for length, count in zip(shape, cells, strict=True)]
    counts = np.empty([shape[0], *cells[1:]])
    step = max(1, _SLAB // (shape[1] * shape[2]))
    for plane in range(0, shape[0], step):  # slab by slab: no second copy of the volume
        above = (voxels[:, plane : plane + step] > threshold).sum(axis=0, dtype=np.int32)
        rows = np.add.reduceat(above, edges[1][:-1], axis=1)
        counts[plane : plane + step] = np.add.reduceat(rows, edges[2][:-1], axis=2)
    counts = np.add.reduceat(counts, edges[0][:-1], axis=0)
    sizes = np.multiply.outer(np.multiply.outer(np.diff(edges[0]), np.diff(edges[1])), np.diff(edges[2]))
    return counts >= _SHARE * voxels.shape[0] * sizes
