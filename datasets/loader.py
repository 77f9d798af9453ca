"""The crop loader: an endless, exactly resumable stream of batches."""

import time
from dataclasses import replace
from types import TracebackType

import numpy as np
import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch, Crops
from scanfoundry.datasets.crop import mix
from scanfoundry.datasets.plan import DataConfig, Draw, Position, SamplingPlan
from scanfoundry.datasets.shards.hashes import Hashes
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.storage.faults import FaultText, StorageFault
from scanfoundry.datasets.storage.prefetch import Prefetcher, PrefetchRequest
from scanfoundry.datasets.synthetic.config import SyntheticConfig
from scanfoundry.datasets.workers.caches import SourceLoad, cache_sizes
from scanfoundry.datasets.workers.copy_ahead import CopyAhead
from scanfoundry.datasets.workers.pinning import cuda_pages
from scanfoundry.datasets.workers.shared_buffers import SharedBuffers, bits_of, buffer_size, labels_of, view_of
from scanfoundry.datasets.workers.worker import FilledBatch, FillTask, ReaderSetup, SourceSetup
from scanfoundry.datasets.workers.worker_pool import InProcessFiller, WorkerPool

_GROWTH = 4  # times the configured ring
_AHEAD = 64  # steps whose shards are fetched before they are needed
_START = Position()


class CropLoader:
    """Iterator of `Batch`: one rank's part of every optimiser step.

    What it yields depends on configuration, seed and position alone, not on workers, their deaths, or what was iterated
    before. The parts of all ranks make up the same global batch at any number of ranks. A scan that cannot be read is
    replaced by the next scan of its source and counted. With `config.positives` of two scans a batch is twice as long,
    and its second half are the partners of the first. Use it as a context manager, or call `close`.

    Args:
        config: what is sampled.
        seed: of the run.
        rank: which part of the global batch this process gets, of `world_size`.
        world_size: how many parts there are.
        micro_batches: batches of equal size that a step is handed out in.
        position: where the stream goes on.
        device: where batches are cast, normalised, padded and flipped. To a GPU they are copied from pinned memory, the
            next one while the one before it is computed on.
        plan: of these sources and this seed, where there is one already; to make one takes time and memory.

    Raises:
        UserError: a source cannot be used, or a batch cannot be divided; while iterating, more scans are damaged than
            `config.bad_sample_ceiling` allows, or no worker answers for `config.timeout_s`.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        position: Position = _START,
        device: torch.device | str = "cpu",
        plan: SamplingPlan | None = None,
    ) -> None:
        self.plan = plan or SamplingPlan(config, seed)
        self._config, self._rank, self._device = config, rank, torch.device(device)
        self._ahead_of_device = CopyAhead(self.crops, self._device) if self._device.type != "cpu" else None
        self._micro, self._shares = micro_batches, micro_batches * world_size
        for kind in self.plan.kinds:
            if kind.batch % self._shares:
                name = "batch_2d" if kind.crop[0] == 1 else "batch_3d"
                parts = f"{world_size} ranks x {micro_batches} micro-batches"
                raise UserError(f"data.{name} {kind.batch} cannot be divided among {parts}")
        rows, excluding = (2 if self.plan.paired else 1), any(source.exclude for source in config.sources)
        sizes = [
            buffer_size(kind.crop, rows * kind.batch // self._shares, config.channels, excluding, self.plan.labelled)
            for kind in self.plan.kinds
        ]
        self._buffers = SharedBuffers(max(sizes), config.ring, _GROWTH * config.ring)
        if self._device.type == "cuda":
            self._buffers.pin(cuda_pages())
        setup = self._setup(world_size)
        self._pool = (
            WorkerPool(setup, self._buffers, config.workers, config.timeout_s)
            if config.workers
            else InProcessFiller(setup, self._buffers)
        )
        # Batches are numbered from the start of the run.
        self._next = (position.epoch * self.plan.steps_per_epoch + position.position) * micro_batches
        self._planned = self._next
        self._remote = any(isinstance(data, DataSet) and data.store.remote for data in self.plan.data)
        self._prefetcher = Prefetcher(config.cache.ahead_bytes)
        self._ahead = -1  # the last step whose shards are on their way
        self._tasks: dict[int, FillTask] = {}  # under way or filled, not handed out yet
        self._filled: dict[int, FilledBatch] = {}
        self._bad: dict[tuple[int, int], str] = {}  # (stream, row): reason
        # Crops, by their seeds, of scans that are damaged where these lie. What is drawn of such a scan must not depend
        # on which of its crops came before, since a run that continues does not know.
        self._bad_crops: dict[tuple[int, int, int], str] = {}
        self._waited = 0.0

    def _setup(self, world_size: int) -> ReaderSetup:
        config = self._config
        sources: list[SourceSetup | SyntheticConfig] = []
        loads: list[SourceLoad] = []
        for number, (source, data) in enumerate(zip(config.sources, self.plan.data, strict=True)):
            if not isinstance(data, DataSet):
                sources.append(data.config)
                continue
            shards = data.manifest.shards
            sources.append(SourceSetup(data.store, shards, source.flip_axes, source.exclude))
            in_use = sum(stream.visits.in_use for stream in self.plan.current if stream.source == number)
            largest = max(shard.bytes for shard in shards) if data.store.remote else 0
            loads.append(SourceLoad(in_use, data.manifest.scans / len(shards), largest, len(shards)))
        # Half of the cache is for what the workers hold; the other half for what comes next.
        holders = max(1, config.workers) * world_size
        self._caches = cache_sizes(loads, config.cache.ahead_bytes, holders, config.workers)
        return ReaderSetup(
            sources,
            config.channels,
            config.foreground,
            config.intensity,
            self._caches.indices,
            self._caches.open_shards,
            config.min_overlap,
            self.plan.labelled,
        )

    def __iter__(self) -> "CropLoader":
        return self

    def __next__(self) -> Batch:
        return self._ahead_of_device() if self._ahead_of_device else self.crops().to(self._device)

    def crops(self) -> Crops:
        """The next batch as it lies in shared memory, before it is cast and normalised on the device."""
        self._fetch_ahead()
        self._plan_ahead()
        if self._next not in self._tasks:
            self._buffers.grow()  # every buffer is in the caller's hands
            self._plan_ahead()
        began = time.perf_counter()
        while self._next not in self._filled:
            for filled in self._pool.collect():
                self._receive(filled)
        self._waited += time.perf_counter() - began
        crops = self._hand_out(self._next)
        self._next += 1
        self._plan_ahead()
        return crops

    def _plan_ahead(self) -> None:
        """Give every free buffer a batch to be filled with."""
        while (slot := self._buffers.acquire()) is not None:
            step, micro = divmod(self._planned, self._micro)
            share = self._rank * self._micro + micro
            draws = self._readable(self.plan.draws(step, share, self._shares))
            self._submit(FillTask(self._planned, slot, self.plan.kind(step).crop, draws, self.plan.paired))
            self._planned += 1

    def _fetch_ahead(self) -> None:
        """Fetch the remote shards of the coming steps; look again when half of these are done."""
        step = self._next // self._micro
        if not self._remote or step + _AHEAD // 2 < self._ahead:
            return
        self._ahead = step + _AHEAD
        needed = dict.fromkeys(pair for each in range(step, self._ahead) for pair in self.plan.shards_of(each))
        wanted = []
        for source, number in needed:
            data = self.plan.data[source]
            assert isinstance(data, DataSet), "drawn scans have no shards"
            shard = data.manifest.shards[number]
            wanted.append(PrefetchRequest(data.store, shard.name, shard.sha256, shard.bytes))
        self._prefetcher.ahead(wanted)

    def _submit(self, task: FillTask) -> None:
        self._tasks[task.number] = task
        self._pool.submit(task)

    def _readable(self, draws: list[Draw]) -> list[Draw]:
        """The draws, with others where a scan is known to be bad; then the partners, of the scans as they are now."""
        readable: list[Draw] = []
        for wanted in draws:
            draw = wanted
            while (draw.stream, draw.row) in self._bad or (draw.stream, draw.row, draw.seed) in self._bad_crops:
                draw = self.plan.replacement(draw)
                if draw.row == wanted.row:  # once around
                    source, rows = self._config.sources[draw.source].name, self.plan.streams[draw.stream].visits.rows
                    raise UserError(
                        f"source '{source}': none of {rows} scans of one kind can be read; the last: "
                        f"{next(reversed((self._bad | self._bad_crops).values()))}"
                    )
            readable.append(draw)
        partners = [self.plan.partner(draw, self._bad) for draw in readable] if self.plan.paired else []
        return readable + partners

    def _receive(self, filled: FilledBatch) -> None:
        if not filled.bad:
            self._filled[filled.number] = filled
            return
        task = self._tasks[filled.number]
        for position, reason in filled.bad.items():
            draw = task.draws[position]
            if position in filled.elsewhere and not task.paired:
                self._bad_crops[draw.stream, draw.row, draw.seed] = reason
            else:
                self._bad[draw.stream, draw.row] = reason
        ceiling, count = self._config.bad_sample_ceiling, self._bad_samples()
        if count > ceiling * self.plan.stored or count == self.plan.stored:
            kind = StorageFault if isinstance(reason, FaultText) else UserError
            raise kind(
                f"{count} of {self.plan.stored} scans cannot be read, more than data.bad_sample_ceiling "
                f"{ceiling:g} allows; the last: {reason}"
            )
        first = task.draws[: len(task.draws) // 2] if task.paired else task.draws
        self._submit(replace(task, draws=self._readable(first)))

    def _bad_samples(self) -> int:
        """Scans that cannot be read, or not everywhere; of a source that has grown, one may be in two streams."""
        found = self._bad.keys() | {crop[:2] for crop in self._bad_crops}
        return len({self.plan.scan(*each) for each in found})

    def _hand_out(self, number: int) -> Crops:
        task, filled = self._tasks.pop(number), self._filled.pop(number)
        buffer = self._buffers.lend(task.slot)
        shape = task.crop, len(task.draws), self._config.channels
        voxels = view_of(buffer, filled.dtype, *shape)
        seeds = np.array([mix(draw.seed, 1) >> 1 for draw in task.draws], np.int64)
        return Crops(
            voxels=torch.from_numpy(voxels),
            inside=filled.inside,
            flips=filled.flips,
            scaling=filled.scaling,
            seeds=torch.from_numpy(seeds),
            keys=filled.keys,
            modalities=filled.modalities,
            sources=[self._config.sources[draw.source].name for draw in task.draws],
            step=number // self._micro,
            paired=task.paired,
            excluded=torch.from_numpy(bits_of(buffer, *shape)) if filled.excluded else None,
            centres=filled.centres,
            labels=torch.from_numpy(labels_of(buffer, *shape)) if self.plan.labelled else None,
        )

    def state(self) -> dict[str, int]:
        """The position after all whole steps that were handed out, which `Position.of` takes back."""
        handed_out = self._next - (self._ahead_of_device.waiting if self._ahead_of_device else 0)
        epoch, position = divmod(handed_out // self._micro, self.plan.steps_per_epoch)
        return {"seed": self.plan.seed, "epoch": epoch, "position": position}

    def stats(self) -> dict[str, float]:
        """Scans that could not be read, workers that were replaced, and the seconds that the caller has waited."""
        return {
            "bad_samples": self._bad_samples(),
            "respawned_workers": self._pool.respawned,
            "wait_seconds": self._waited,
        }

    @property
    def manifest_hash(self) -> dict[str, str]:
        """SHA-256 of each source's manifest, by the source's name."""
        return self.plan.manifest_hash

    @property
    def messages(self) -> list[str]:
        """What of the sources is left out, and what is kept in memory and open, in sentences for people."""
        caches = self._caches.messages(self._config.workers) if self.plan.stored else []
        return [*self.plan.messages, *caches, *self._buffers.messages]

    @property
    def sites(self) -> dict[str, str]:
        """Fingerprint of the key that each source's patients are hashed with, by the name of a source that has any."""
        return self.plan.sites

    @property
    def hashes(self) -> Hashes:
        """What `patients` gives, in little memory."""
        return self.plan.hashes

    def patients(self) -> list[str]:
        """Sorted hashes of the patients that the stream may hold."""
        return self.plan.patients()

    def close(self) -> None:
        """End the workers and free the buffers. Batches that the caller holds stay valid."""
        if self._ahead_of_device is not None:
            self._ahead_of_device.close()
        self._prefetcher.close()
        self._pool.close()
        self._buffers.close()

    def __enter__(self) -> "CropLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
