"""What a loader's worker process does: fill a batch buffer with the crops it is told. Imports no torch."""

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path

import blosc2
import numpy as np
from numpy.typing import NDArray

from scanforge.datasets.crop import Triple, as_channels, overlap, place
from scanforge.datasets.intensity import IntensityConfig, background, normalise
from scanforge.datasets.plan import Draw
from scanforge.datasets.processes import Handler
from scanforge.datasets.ring import split_buffer
from scanforge.datasets.shards.format import SampleEntry, ShardRecord, unpack_bits
from scanforge.datasets.shards.reader import BadSample, ShardReader

_OPEN_SHARDS = 64  # whose indices a process keeps


@dataclass(frozen=True)
class SourceSetup:
    """A source as a worker needs it."""

    folder: Path
    shards: Sequence[ShardRecord]
    flip_axes: Sequence[int]


@dataclass(frozen=True)
class Setup:
    """The first message to a worker."""

    sources: Sequence[SourceSetup]
    channels: int
    foreground: float
    intensity: IntensityConfig


@dataclass(frozen=True)
class Attach:
    """The buffer `slot` of `size` bytes; its descriptor follows on the pipe."""

    slot: int
    size: int


@dataclass(frozen=True)
class Task:
    """Fill the buffer `slot` with `draws`, the batch number `number` of this loader."""

    number: int
    slot: int
    crop: Triple
    draws: list[Draw]


@dataclass(frozen=True)
class Filled:
    """A task's answer; where `bad` (position in the batch: reason) is not empty, the buffer is not to be used."""

    number: int
    keys: list[str] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


class CropReader:
    """Reads crops, normalised and padded, straight into buffers."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._reader = lru_cache(maxsize=_OPEN_SHARDS)(self._open)

    def _open(self, source: int, shard: int) -> ShardReader:
        chosen = self._setup.sources[source]
        return ShardReader(chosen.folder, chosen.shards[shard])

    def fill(self, task: Task, buffer: NDArray[np.uint8]) -> Filled:
        """Fills `buffer` with the crops of `task`."""
        voxels, valid = split_buffer(buffer, task.crop, len(task.draws), self._setup.channels)
        filled = Filled(task.number)
        for position, draw in enumerate(task.draws):
            try:
                entry = self.crop(draw, voxels[position], valid[position])
            except BadSample as error:
                filled.bad[position] = str(error)
                continue
            filled.keys.append(entry.key)
            filled.modalities.append(entry.modality)
        return filled

    def crop(self, draw: Draw, voxels: NDArray[np.float32], valid: NDArray[np.bool_]) -> SampleEntry:
        """Writes one crop to voxels (C, D, H, W) and valid (1, D, H, W); BadSample where it cannot be read."""
        setup, source = self._setup, self._setup.sources[draw.source]
        reader = self._reader(draw.source, draw.shard)
        entry = reader.entries[draw.sample]
        scan, size = entry.shape[1:], voxels.shape[1:]
        bitmap = unpack_bits(entry.foreground, entry.grid)
        where = place(draw.seed, scan, size, bitmap, setup.foreground, source.flip_axes)
        of_scan, of_crop = overlap(where.start, scan, size)
        read = as_channels(reader.read(draw.sample, of_scan), setup.channels)
        if read.shape[1:] != size:
            voxels.fill(background(entry.modality, entry.stats, setup.intensity))
            valid.fill(False)
        # Flipped views of the target: the crop is written once, in its final place.
        flip = (slice(None), *(slice(None, None, -1) if flipped else slice(None) for flipped in where.flips))
        target, inside = voxels[flip][(slice(None), *of_crop)], valid[flip][(slice(None), *of_crop)]
        normalise(read, entry.modality, entry.stats, setup.intensity, out=target)
        inside[...] = True
        return entry


def worker(connection: Connection) -> Handler:
    """Factory for `processes.Worker`."""
    blosc2.set_nthreads(1)
    reader = CropReader(connection.recv())
    buffers: dict[int, NDArray[np.uint8]] = {}

    def handle(message: Attach | Task) -> Iterator[Filled]:
        if isinstance(message, Attach):
            descriptor = recv_handle(connection)
            buffers[message.slot] = np.frombuffer(mmap.mmap(descriptor, message.size), np.uint8)
            os.close(descriptor)
        else:
            yield reader.fill(message, buffers[message.slot])

    return handle
