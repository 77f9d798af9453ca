"""The worker process of a loader: it fills a batch buffer with the crops of a task. It imports no torch."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import blosc2
import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.centres import Centres
from scanfoundry.datasets.crop import CropPlacement, Slices, as_channels, near, overlap, place
from scanfoundry.datasets.intensity import IntensityConfig, scaling, statistics
from scanfoundry.datasets.plan import Draw
from scanfoundry.datasets.processes import Handler
from scanfoundry.datasets.sampling.excluded import read_excluded
from scanfoundry.datasets.sampling.pairs import aligned
from scanfoundry.datasets.shards.format import SampleEntry, ShardRecord, unpack_bits
from scanfoundry.datasets.shards.index import EntryCache
from scanfoundry.datasets.shards.reader import BadCrop, BadSample, ShardReader
from scanfoundry.datasets.storage.faults import reason_of
from scanfoundry.datasets.storage.store import Store, Unavailable
from scanfoundry.datasets.synthetic.config import SyntheticConfig
from scanfoundry.datasets.synthetic.draw import draw_scan
from scanfoundry.datasets.synthetic.source import MODALITY
from scanfoundry.datasets.workers.caches import ENTRIES, raise_file_limit
from scanfoundry.datasets.workers.shared_buffers import DTYPES, bits_of, labels_of, view_of


@dataclass(frozen=True)
class SourceSetup:
    """A source as a worker needs it."""

    store: Store
    shards: Sequence[ShardRecord]
    flip_axes: Sequence[int]
    exclude: str | None = None


@dataclass(frozen=True)
class ReaderSetup:
    """The first message to a worker: what it reads or draws, and how."""

    sources: Sequence[SourceSetup | SyntheticConfig]
    channels: int
    foreground: float
    intensity: IntensityConfig
    indices: int  # of shards, that a worker keeps
    open_shards: int  # that a worker keeps open
    min_overlap: float = 0.0  # of two crops of one scan
    labelled: bool = False  # batches come with label maps


@dataclass(frozen=True)
class AttachBuffer:
    """Message: use the buffer `slot` of `size` bytes, whose descriptor follows on the pipe."""

    slot: int
    size: int


@dataclass(frozen=True)
class FillTask:
    """Message: fill the buffer `slot` with the crops `draws`, for batch number `number` of this loader."""

    number: int
    slot: int
    crop: Size3D
    draws: list[Draw]
    paired: bool = False  # the second half are the partners of the first


@dataclass
class FilledBatch:
    """The answer to a `FillTask`: what `batch.Crops` holds beside the voxels in the buffer.

    Attributes:
        bad: reasons by position in the batch. Where there are any, the buffer is not to be used.
        elsewhere: positions of those among them whose scans can be read elsewhere.
        excluded: the buffer holds bits of exclusion behind the voxels.
    """

    number: int
    dtype: str
    inside: NDArray[np.int64]
    flips: NDArray[np.bool_]
    scaling: NDArray[np.float32]
    keys: list[str]
    modalities: list[str]
    centres: Centres
    bad: dict[int, str] = field(default_factory=dict)
    excluded: bool = False
    elsewhere: set[int] = field(default_factory=set)


class CropReader:
    """Reads crops straight into buffers, or draws them."""

    def __init__(self, setup: ReaderSetup) -> None:
        self._setup = setup
        self._entries = EntryCache(ENTRIES)
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._opened: OrderedDict[ShardReader, None] = OrderedDict()  # those with an open file

    def _stored(self, source: int) -> SourceSetup:
        chosen = self._setup.sources[source]
        assert isinstance(chosen, SourceSetup), "a drawn scan is in no shard"
        return chosen

    def _reader(self, source: int, shard: int) -> ShardReader:
        place = (source, shard)
        if place not in self._readers:
            chosen = self._stored(source)
            self._readers[place] = ShardReader(chosen.store, chosen.shards[shard], self._entries)
        self._readers.move_to_end(place)
        return self._readers[place]

    def _used(self, reader: ShardReader) -> None:
        """Closes files that were used longest ago, so that no more are open than may be."""
        self._opened[reader] = None
        self._opened.move_to_end(reader)
        while len(self._opened) > self._setup.open_shards:
            self._opened.popitem(last=False)[0].close()

    def _forget(self) -> None:
        """Lets go of indices that were used longest ago; between batches, since a batch holds its readers."""
        while len(self._readers) > self._setup.indices:
            reader = self._readers.popitem(last=False)[1]
            self._opened.pop(reader, None)
            reader.close()

    def fill(self, task: FillTask, buffer: NDArray[np.uint8]) -> FilledBatch:
        """Fills `buffer` with the crops of `task`."""
        count = len(task.draws)
        dtype, readers, entries, bad = self._open_readers(task)
        filled = FilledBatch(
            task.number,
            dtype,
            np.zeros((count, 2, 3), np.int64),
            np.zeros((count, 3), np.bool_),
            np.zeros((count, 4), np.float32),
            [""] * count,
            [""] * count,
            Centres.unknown(count),
            bad=bad,
        )
        voxels = view_of(buffer, dtype, task.crop, count, self._setup.channels)
        batch = _BatchInProgress(task, entries, [None] * count, buffer, voxels, filled)
        self._draw(batch)
        for position in batch.order():
            reader, entry = readers[position], entries[position]
            if reader is not None and entry is not None:
                try:
                    self._crop(batch, position, reader, entry)
                except (BadSample, ValueError) as error:
                    bad[position] = reason_of(error)
                    if isinstance(error, BadCrop):
                        filled.elsewhere.add(position)
                except (LookupError, ArithmeticError) as error:
                    bad[position] = f"shard {reader.name}: its index is damaged ({type(error).__name__}: {error})"
                self._used(reader)
        self._forget()
        return filled

    def _draw(self, batch: "_BatchInProgress") -> None:
        """Fills the rows of synthetic sources; those of one seed's two appearances together."""
        task, filled = batch.task, batch.filled
        count = len(task.draws) // 2 if task.paired else len(task.draws)
        labels = labels_of(batch.buffer, task.crop, *batch.voxels.shape[:2]) if self._setup.labelled else None
        for position, seed in enumerate(each.seed for each in task.draws[:count]):
            source = self._setup.sources[task.draws[position].source]
            if not isinstance(source, SyntheticConfig):
                continue
            rows = range(position, len(task.draws), count)
            scan = draw_scan(seed, task.crop, source, len(rows))
            for row, voxels in zip(rows, scan.appearances, strict=True):
                batch.voxels[row] = voxels
                if labels is not None:
                    labels[row] = scan.labels
                filled.inside[row, 1] = task.crop
                low, high, centre, scale = scaling(MODALITY, statistics(voxels), self._setup.intensity)
                filled.scaling[row] = low, high, centre, 1 / scale
                # One name for both: they are scans of one study, and so no negatives of each other.
                filled.keys[row], filled.modalities[row] = f"{seed:016x}", MODALITY

    def _open_readers(
        self, task: FillTask
    ) -> tuple[str, list[ShardReader | None], list[SampleEntry | None], dict[int, str]]:
        """The dtype that holds all of the batch, the opened shards, their entries, and what could not be opened.

        A drawn scan has no shard.
        """
        readers: list[ShardReader | None] = []
        entries: list[SampleEntry | None] = [None] * len(task.draws)
        bad: dict[int, str] = {}
        dtypes = set()
        for position, draw in enumerate(task.draws):
            if isinstance(self._setup.sources[draw.source], SyntheticConfig):
                readers.append(None)
                dtypes.add("int16")
                continue
            try:
                reader = self._reader(draw.source, draw.shard)
                entries[position] = entry = reader.entries[draw.sample]
            except Unavailable as error:
                readers.append(None)
                bad[position] = reason_of(error)
                continue
            readers.append(reader)
            # Colour that becomes grey has fractions.
            mixed = entry.shape[0] > self._setup.channels
            dtypes.add("float32" if mixed or entry.dtype not in DTYPES else entry.dtype)
        return dtypes.pop() if len(dtypes) == 1 else "float32", readers, entries, bad

    def _crop(self, batch: "_BatchInProgress", position: int, reader: ShardReader, entry: SampleEntry) -> None:
        """Writes one crop into the buffer, and what is to know of it; BadSample where it cannot be read."""
        setup, draw, filled = self._setup, batch.task.draws[position], batch.filled
        where = self._place(batch, position, entry)
        if where is None:
            return
        of_scan, of_crop = overlap(where.start, entry.shape[1:], batch.task.crop)
        target = batch.voxels[(position, slice(None), *of_crop)]
        if entry.shape[0] == setup.channels:
            reader.read_into(draw.sample, of_scan, target)
        else:
            np.copyto(target, as_channels(reader.read(draw.sample, of_scan), setup.channels), casting="unsafe")
        exclude = self._stored(draw.source).exclude
        if exclude is not None:
            excluded = read_excluded(reader, draw.sample, of_scan, exclude)
            if excluded is not None:
                batch.exclude(position, excluded, of_crop)
        batch.places[position] = where
        filled.inside[position] = [[part.start for part in of_crop], [part.stop for part in of_crop]]
        filled.flips[position] = where.flips
        scan = entry.shape[1:], entry.orientation, entry.frames
        filled.centres.put(position, where.start, batch.task.crop, *scan)
        low, high, centre, scale = scaling(entry.modality, entry.stats, setup.intensity)
        filled.scaling[position] = low, high, centre, 1 / scale
        filled.keys[position] = entry.key
        filled.modalities[position] = entry.modality

    def _place(self, batch: "_BatchInProgress", position: int, entry: SampleEntry) -> CropPlacement | None:
        """Where a crop lies; None for the partner of one that could not be read: both will be replaced."""
        setup, task, draw = self._setup, batch.task, batch.task.draws[position]
        scan, axes = entry.shape[1:], self._stored(draw.source).flip_axes
        number = position - len(task.draws) // 2
        if task.paired and number >= 0:
            first, other, partner = batch.places[number], batch.entries[number], task.draws[number]
            if first is None or other is None:
                return None
            if draw[2:5] != partner[2:5]:
                if aligned(other, entry):
                    return first
            elif setup.min_overlap:
                return near(first, draw.seed, scan, task.crop, setup.min_overlap, axes)
        bitmap = unpack_bits(entry.foreground, entry.grid)
        return place(draw.seed, scan, task.crop, bitmap, setup.foreground, axes)


@dataclass(frozen=True)
class _BatchInProgress:
    """A task while it is worked on."""

    task: FillTask
    entries: list[SampleEntry | None]
    places: list[CropPlacement | None]  # of the crops that are done
    buffer: NDArray[np.uint8]
    voxels: NDArray  # (B, C, D, H, W), in the buffer
    filled: FilledBatch

    def order(self) -> Iterable[int]:
        """The positions, partners one after the other: they may be of one scan, which is opened once."""
        count = len(self.task.draws)
        if not self.task.paired:
            return range(count)
        return [position for first in range(count // 2) for position in (first, count // 2 + first)]

    def exclude(self, position: int, excluded: NDArray[np.bool_], where: Slices) -> None:
        """Marks voxels of the part `where` of a crop."""
        count, channels = self.voxels.shape[:2]
        bits = bits_of(self.buffer, self.task.crop, count, channels)
        if not self.filled.excluded:
            bits[:] = 0
            self.filled.excluded = True
        whole = np.zeros(self.task.crop, np.bool_)
        whole[where] = excluded
        bits[position] = np.packbits(whole)


def worker(connection: Connection) -> Handler:
    """Factory for `processes.Worker`."""
    blosc2.set_nthreads(1)
    raise_file_limit()
    reader = CropReader(connection.recv())
    buffers: dict[int, NDArray[np.uint8]] = {}

    def handle(message: AttachBuffer | FillTask) -> Iterator[FilledBatch]:
        if isinstance(message, AttachBuffer):
            descriptor = recv_handle(connection)
            buffers[message.slot] = np.frombuffer(mmap.mmap(descriptor, message.size), np.uint8)
            os.close(descriptor)
        else:
            yield reader.fill(message, buffers[message.slot])

    return handle
