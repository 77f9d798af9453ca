"""The crops of a probe's scans, read once: this rank's share of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.crop import as_channels, overlap
from scanfoundry.datasets.intensity import IntensityConfig, background, normalise
from scanfoundry.datasets.shards.foreground import cell_edges
from scanfoundry.datasets.shards.format import SampleEntry, unpack_bits
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.probes.labelled import LabelledScan


@dataclass(frozen=True)
class Images:
    """A rank's share of n crops, as many on every rank: where they do not go round, scans are there twice.

    voxels (n, C, D, H, W) float32 and valid (n, 1, D, H, W) bool as in `Batch`, on the CPU
    mask   (n, D, H, W) int64, the masks' own values, or None
    places (n,) their positions among all scans; own: how many are not there for the second time
    """

    voxels: Tensor
    valid: Tensor
    mask: Tensor | None
    places: list[int]
    own: int

    def __len__(self) -> int:
        return len(self.voxels)


def share_of(count: int, rank: int, size: int) -> list[int]:
    """The positions among `count` scans of a rank's share, of the same length on every rank."""
    return [(rank + size * turn) % count for turn in range(-(-count // size))]


def read_images(
    data: DataSet, scans: Sequence[LabelledScan], crop: Size3D, channels: int, intensity: IntensityConfig,
    masks: bool, world: World,
) -> Images:  # fmt: skip
    """The crops of this rank's share, and their masks where `masks`. `BadSample` where one cannot be read."""
    places = share_of(len(scans), world.rank, world.size)
    readers: dict[int, ShardReader] = {}
    read: dict[int, tuple[NDArray, NDArray, NDArray | None]] = {}
    try:
        for place in sorted(set(places), key=lambda place: (scans[place].shard, scans[place].sample)):
            scan = scans[place]
            if scan.shard not in readers:
                readers[scan.shard] = ShardReader(data.store, data.manifest.shards[scan.shard])
            read[place] = _crop(readers[scan.shard], scan.sample, crop, channels, intensity, masks)
    finally:
        for reader in readers.values():
            reader.close()
    voxels, valid, labels = zip(*(read[place] for place in places), strict=True)
    mask = torch.from_numpy(np.stack(labels)) if masks else None
    own = sum(world.rank + world.size * turn < len(scans) for turn in range(len(places)))
    return Images(torch.from_numpy(np.stack(voxels)), torch.from_numpy(np.stack(valid)), mask, places, own)


def _crop(
    reader: ShardReader, number: int, crop: Size3D, channels: int, intensity: IntensityConfig, masks: bool
) -> tuple[NDArray, NDArray, NDArray | None]:
    entry = reader.entries[number]
    whole = reader.read_mask(number) if masks else None
    of_scan, of_crop = overlap(_start(entry, crop, whole), entry.shape[1:], crop)
    voxels = np.full((channels, *crop), background(entry.modality, entry.stats, intensity), np.float32)
    part = as_channels(reader.read(number, of_scan), channels)
    voxels[(slice(None), *of_crop)] = normalise(part, entry.modality, entry.stats, intensity)
    valid = np.zeros((1, *crop), np.bool_)
    valid[(slice(None), *of_crop)] = True
    if whole is None:
        return voxels, valid, None
    mask = np.zeros(crop, np.int64)
    mask[of_crop] = whole[of_scan]
    return voxels, valid, mask


def _start(entry: SampleEntry, crop: Size3D, mask: NDArray | None) -> Size3D:
    """Where the crop begins: in the middle of the labelled region, else of the foreground, inside of the scan."""
    scan, starts = entry.shape[1:], []
    for axis, (low, high) in enumerate(_extent(entry, mask)):
        room = scan[axis] - crop[axis]
        middle = (low + high) // 2 - crop[axis] // 2
        starts.append(min(max(0, middle), room) if room > 0 else -(-room // 2))
    if mask is not None and crop[0] == 1 and mask.any():  # of a volume, the slice with most of it
        starts[0] = int((mask > 0).sum((1, 2)).argmax())
    return starts[0], starts[1], starts[2]


def _extent(entry: SampleEntry, mask: NDArray | None) -> list[tuple[int, int]]:
    """First voxel and end along each axis of the labelled region, of the foreground, or of the scan."""
    scan: tuple[int, ...] = entry.shape[1:]
    grid = mask > 0 if mask is not None and mask.any() else unpack_bits(entry.foreground, entry.grid)
    if not grid.any():
        return [(0, length) for length in scan]
    extent = []
    for axis, length in enumerate(scan):
        cells = np.flatnonzero(grid.any(axis=tuple(other for other in range(3) if other != axis)))
        low, _ = cell_edges(length, grid.shape[axis], int(cells[0]))
        _, high = cell_edges(length, grid.shape[axis], int(cells[-1]))
        extent.append((low, high))
    return extent
