"""A coarse descriptor of a scan, by which re-exports of it are recognised although their bytes differ.

The scan is averaged on a small grid, and the grid's discrete cosine transform is weighted with its frequency. The
correlation of two such descriptors is that of the gradients of the two coarse scans. What all scans of one kind share,
the outline of a body, is smooth and counts little; what tells patients apart counts more.

Descriptors exist while a data set is built, in its partial folder, and nowhere afterwards.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes

CELLS = {True: 16, False: 8}  # along each axis, of images; of volumes and runs of frames
SIZE = {flat: cells ** (2 if flat else 3) - 1 for flat, cells in CELLS.items()}  # numbers in a descriptor
LONGEST = max(SIZE.values())
_SAMPLES = {True: 8, False: 4}  # voxels along a cell that are enough to average
_TOGETHER = 32  # scans that are described one after the other
_FLAT = 1e-9  # what rounding leaves of a scan of one value, as a share of it
_HIGHEST = 127  # sums of products of 511 such numbers stay below 2**24: float32 holds them exactly


def describe(voxels: NDArray, stats: dict[str, float]) -> NDArray[np.int8]:
    """The descriptor of a scan.

    It is the same for voxels * a + b (a > 0), and hardly changes with noise, compression or the size of the voxels.

    Args:
        voxels: (C, D, H, W); channels are averaged.
        stats: of the scan, see `intensity.statistics`. What lies outside of its percentiles is clipped to these.

    Returns:
        (255,) of an image (D = 1) and (511,) of a volume, coefficients in the order of their frequency; all zero where
        the scan has nothing to recognise it by.
    """
    return _transformed(_sampled(voxels), stats)


class ThumbnailList:
    """The descriptors of a shard's scans, made many at a time: a single one is mostly waiting for memory."""

    def __init__(self) -> None:
        self._done: list[NDArray[np.int8]] = []
        self._waiting: list[tuple[NDArray, dict[str, float]]] = []

    def add(self, voxels: NDArray, stats: dict[str, float]) -> None:
        """Append the descriptor of a scan, see `describe`; the voxels are not kept."""
        self._waiting.append((_sampled(voxels).copy(), stats))
        if len(self._waiting) == _TOGETHER:
            self.all()

    def cut(self, scans: int) -> None:
        """Take back all but the first `scans`."""
        del self._waiting[max(0, scans - len(self._done)) :], self._done[scans:]

    def all(self) -> list[NDArray[np.int8]]:
        """All of them, in order."""
        self._done += [_transformed(*scan) for scan in self._waiting]
        self._waiting.clear()
        return self._done


def _sampled(voxels: NDArray) -> NDArray:
    """Evenly spaced voxels of (C, D, H, W): enough for the averages of the cells, where a scan has more."""
    flat = voxels.shape[1] == 1
    depth, height, width = (
        slice(step // 2, None, step)
        for step in [max(1, round(length / (CELLS[flat] * _SAMPLES[flat]))) for length in voxels.shape[1:]]
    )
    return voxels[:, depth, height, width]


def _transformed(sample: NDArray, stats: dict[str, float]) -> NDArray[np.int8]:
    """The descriptor of evenly spaced voxels of a scan."""
    flat = sample.shape[1] == 1
    low, high = stats["p005"], stats["p995"]
    if not low < high:  # a few voxels on an empty ground
        low, high = stats["min"], stats["max"]
    # In float64, where the order of a sum practically never decides how a number is rounded below.
    grid = sample.astype(np.float64).clip(low, high)
    grid = grid.mean(axis=0) if len(grid) > 1 else grid[0]
    depth, height, width = (_basis(length, CELLS[flat]) for length in grid.shape)
    grid = height @ grid @ width.T
    if not flat:
        grid = depth @ grid.reshape(len(grid), -1)
    order, weights = _frequencies(flat)
    found = grid.reshape(-1)[order] * weights
    peak = np.abs(found).max()
    if not peak > _FLAT * max(abs(low), abs(high)):
        return np.zeros(len(order), np.int8)
    return np.rint(found * (_HIGHEST / peak)).astype(np.int8)


@lru_cache(maxsize=256)
def _basis(length: int, cells: int) -> NDArray[np.float64]:
    """(cells, length): averages over equal parts of an axis, then their orthonormal cosine transform (DCT-II)."""
    edges = np.linspace(0, length, cells + 1)
    place = np.arange(length)
    covered = np.minimum(place + 1, edges[1:, None]) - np.maximum(place, edges[:-1, None])
    means = covered.clip(0) * (cells / length)
    wave = np.cos(np.pi / cells * np.outer(np.arange(cells), np.arange(cells) + 0.5))
    wave *= np.sqrt(np.where(np.arange(cells) == 0, 1, 2) / cells)[:, None]
    return wave @ means


@lru_cache
def _frequencies(flat: bool) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Places of the coefficients but the mean, from the lowest frequency to the highest, and their weights."""
    places = np.indices([CELLS[flat]] * (2 if flat else 3)).reshape(2 if flat else 3, -1)
    squares = (places**2).sum(0)
    order = np.argsort(squares, kind="stable")[1:]
    return order, np.sqrt(squares[order])


def thumbnails_path(partial: Path, shard: str) -> Path:
    """Where the descriptors of a shard are kept until the build is complete."""
    return partial / f"{shard}.thumbnails.npy"


def write_thumbnails(path: Path, thumbnails: Sequence[NDArray[np.int8]]) -> None:
    """The descriptors of a shard's scans, in order, as one array (scans, 511); those of images end with zeros."""
    table = np.zeros((len(thumbnails), LONGEST), np.int8)
    for row, thumbnail in zip(table, thumbnails, strict=True):
        row[: len(thumbnail)] = thumbnail
    stream = io.BytesIO()
    np.save(stream, table, allow_pickle=False)
    write_bytes(path, stream.getvalue())


def read_thumbnails(path: Path, scans: int) -> NDArray[np.int8]:
    """What `write_thumbnails` wrote for a shard of `scans` scans.

    Raises:
        UserError: the file cannot be read, or is of another shard.
    """
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read; delete it and build again") from error
    if table.dtype != np.int8 or table.shape != (scans, LONGEST):
        raise UserError(f"{path} is damaged; delete it and build again")
    return table
