"""What a loader's worker process does: fill a batch buffer with the crops it is told. Imports no torch."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import blosc2
import numpy as np
from numpy.typing import NDArray

from scanforge.datasets.crop import Triple, as_channels, overlap, place
from scanforge.datasets.intensity import IntensityConfig, scaling
from scanforge.datasets.plan import Draw
from scanforge.datasets.processes import Handler
from scanforge.datasets.ring import DTYPES, view_of
from scanforge.datasets.shards.format import ShardRecord, unpack_bits
from scanforge.datasets.shards.reader import BadSample, ShardReader
from scanforge.datasets.shards.store import Store, Unavailable

_INDICES = 64  # of shards, that a process keeps


@dataclass(frozen=True)
class SourceSetup:
    """A source as a worker needs it."""

    store: Store
    shards: Sequence[ShardRecord]
    flip_axes: Sequence[int]


@dataclass(frozen=True)
class Setup:
    """The first message to a worker."""

    sources: Sequence[SourceSetup]
    channels: int
    foreground: float
    intensity: IntensityConfig
    open_shards: int  # that a worker keeps open


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
    """A task's answer: what `batch.Crops` says of the voxels in the buffer.

    Where `bad` (position in the batch: reason) is not empty, the buffer is not to be used.
    """

    number: int
    dtype: str
    inside: NDArray[np.int64]
    flips: NDArray[np.bool_]
    scaling: NDArray[np.float32]
    keys: list[str] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


class CropReader:
    """Reads crops straight into buffers."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._opened: OrderedDict[ShardReader, None] = OrderedDict()  # those with an open file

    def _reader(self, source: int, shard: int) -> ShardReader:
        place = (source, shard)
        if place not in self._readers:
            chosen = self._setup.sources[source]
            self._readers[place] = ShardReader(chosen.store, chosen.shards[shard])
        self._readers.move_to_end(place)
        return self._readers[place]

    def _used(self, reader: ShardReader) -> None:
        """Closes files that were used longest ago, so that few are held in a cache of remote shards."""
        self._opened[reader] = None
        self._opened.move_to_end(reader)
        while len(self._opened) > self._setup.open_shards:
            self._opened.popitem(last=False)[0].close()

    def _forget(self) -> None:
        """Lets go of indices that were used longest ago; between batches, since a batch holds its readers."""
        while len(self._readers) > _INDICES:
            reader = self._readers.popitem(last=False)[1]
            self._opened.pop(reader, None)
            reader.close()

    def fill(self, task: Task, buffer: NDArray[np.uint8]) -> Filled:
        """Fills `buffer` with the crops of `task`."""
        count, channels = len(task.draws), self._setup.channels
        dtype, readers, bad = self._survey(task)
        filled = Filled(
            task.number,
            dtype,
            np.zeros((count, 2, 3), np.int64),
            np.zeros((count, 3), np.bool_),
            np.zeros((count, 4), np.float32),
            bad=bad,
        )
        voxels = view_of(buffer, dtype, task.crop, count, channels)
        for position, (draw, reader) in enumerate(zip(task.draws, readers, strict=True)):
            if reader is not None:
                try:
                    self._crop(draw, reader, voxels[position], filled, position)
                except (BadSample, ValueError) as error:
                    bad[position] = str(error)
                except (LookupError, ArithmeticError) as error:
                    bad[position] = f"shard {reader.name}: its index is damaged ({type(error).__name__}: {error})"
                self._used(reader)
        self._forget()
        return filled

    def _survey(self, task: Task) -> tuple[str, list[ShardReader | None], dict[int, str]]:
        """The dtype that holds all of the batch, the opened shards, and those that could not be opened."""
        readers: list[ShardReader | None] = []
        bad: dict[int, str] = {}
        dtypes = set()
        for position, draw in enumerate(task.draws):
            try:
                reader = self._reader(draw.source, draw.shard)
            except Unavailable as error:
                readers.append(None)
                bad[position] = str(error)
                continue
            readers.append(reader)
            entry = reader.entries[draw.sample]
            # Colour that becomes grey has fractions.
            mixed = entry.shape[0] > self._setup.channels
            dtypes.add("float32" if mixed or entry.dtype not in DTYPES else entry.dtype)
        return dtypes.pop() if len(dtypes) == 1 else "float32", readers, bad

    def _crop(self, draw: Draw, reader: ShardReader, voxels: NDArray, filled: Filled, position: int) -> None:
        """Writes one crop to voxels (C, D, H, W), and what is to know of it; BadSample where it cannot be read."""
        setup, source = self._setup, self._setup.sources[draw.source]
        entry = reader.entries[draw.sample]
        scan, size = entry.shape[1:], voxels.shape[1:]
        bitmap = unpack_bits(entry.foreground, entry.grid)
        where = place(draw.seed, scan, size, bitmap, setup.foreground, source.flip_axes)
        of_scan, of_crop = overlap(where.start, scan, size)
        target = voxels[(slice(None), *of_crop)]
        if entry.shape[0] == setup.channels:
            reader.read_into(draw.sample, of_scan, target)
        else:
            np.copyto(target, as_channels(reader.read(draw.sample, of_scan), setup.channels), casting="unsafe")
        filled.inside[position] = [[part.start for part in of_crop], [part.stop for part in of_crop]]
        filled.flips[position] = where.flips
        low, high, centre, scale = scaling(entry.modality, entry.stats, setup.intensity)
        filled.scaling[position] = low, high, centre, 1 / scale
        filled.keys.append(entry.key)
        filled.modalities.append(entry.modality)


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
