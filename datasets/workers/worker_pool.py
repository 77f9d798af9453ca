"""The processes that fill batch buffers: workers that may die, or the calling process itself."""

from collections import Counter, deque
from contextlib import suppress
from multiprocessing.reduction import send_handle

import blosc2

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.processes import Worker, WorkerDied, ready
from scanfoundry.datasets.workers.shared_buffers import SharedBuffers
from scanfoundry.datasets.workers.worker import (
    AttachBuffer,
    CropReader,
    FilledBatch,
    FillTask,
    ReaderSetup,
    SourceSetup,
)

_FACTORY = "scanfoundry.datasets.workers.worker:worker"
_QUEUED = 2  # tasks a worker holds, so that it never waits for the parent
_DEATHS = 3  # of workers at one task


class InProcessFiller:
    """Fills buffers in the calling process, one for each call of `collect`."""

    respawned = 0

    def __init__(self, setup: ReaderSetup, buffers: SharedBuffers) -> None:
        blosc2.set_nthreads(1)  # blocks are small: threads only wait for each other
        self._reader, self._buffers = CropReader(setup), buffers
        self._queued: deque[FillTask] = deque()

    def submit(self, task: FillTask) -> None:
        """Queues a task."""
        self._queued.append(task)

    def collect(self) -> list[FilledBatch]:
        """Do the next task."""
        task = self._queued.popleft()
        return [self._reader.fill(task, self._buffers.view(task.slot))]

    def close(self) -> None:
        """Forgets what is queued."""
        self._queued.clear()


class WorkerPool:
    """Worker processes that fill buffers. One that dies is replaced, and its tasks are done again, to the same result.

    Args:
        setup: what the workers read.
        buffers: that they fill.
        count: of processes.
        timeout: seconds without any reply that end the run.
    """

    def __init__(self, setup: ReaderSetup, buffers: SharedBuffers, count: int, timeout: float) -> None:
        self._setup, self._buffers, self._timeout = setup, buffers, timeout
        self._queued: deque[FillTask] = deque()
        self._held: dict[Worker, deque[FillTask]] = {}
        self._attached: dict[Worker, int] = {}
        self._deaths: Counter[int] = Counter()
        self.respawned = 0
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        worker = Worker(_FACTORY)
        worker.send(self._setup)
        self._held[worker], self._attached[worker] = deque(), 0

    def submit(self, task: FillTask) -> None:
        """Queues a task."""
        self._queued.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queued:
            worker = min(self._held, key=lambda each: len(self._held[each]))
            if len(self._held[worker]) == _QUEUED:
                return
            for slot in range(self._attached[worker], len(self._buffers.descriptors)):
                worker.send(AttachBuffer(slot, self._buffers.size))
                with suppress(BrokenPipeError, ConnectionResetError):
                    send_handle(worker.connection, self._buffers.descriptors[slot], worker.process.pid)
            self._attached[worker] = len(self._buffers.descriptors)
            self._held[worker].append(self._queued.popleft())
            worker.send(self._held[worker][-1])

    def collect(self) -> list[FilledBatch]:
        """Wait for at least one worker to fill a buffer or to die.

        Returns:
            The batches that were filled, perhaps none.

        Raises:
            UserError: no worker replied within the timeout, or workers died too often at one batch.
        """
        filled = []
        replied = ready(self._held, self._timeout)
        if not replied:
            raise UserError(self._stuck())
        for worker in replied:
            reply = worker.receive()
            if isinstance(reply, WorkerDied):
                self._replace(worker, reply)
            else:
                self._held[worker].popleft()
                filled.append(reply)
        self._hand_out()
        return filled

    def _replace(self, worker: Worker, died: WorkerDied) -> None:
        lost = self._held.pop(worker)
        del self._attached[worker]
        worker.close()
        if lost:
            self._deaths[lost[0].number] += 1
            if self._deaths[lost[0].number] > _DEATHS:
                raise UserError(
                    f"worker processes died {_DEATHS + 1} times at one batch (exit status {died.status}: -9 is mostly "
                    f"lack of memory, -7 a disk or a shard that went away); it reads {self._shards(lost[0])}"
                )
        self._queued.extendleft(reversed(lost))
        self.respawned += 1
        self._start()

    def _stuck(self) -> str:
        reading = next((self._shards(tasks[0]) for tasks in self._held.values() if tasks), "nothing")
        return (
            f"no worker has filled a batch for {self._timeout:g} s (data.timeout_s): a disk or a network that hangs? "
            f"one reads {reading}"
        )

    def _shards(self, task: FillTask) -> str:
        used = {(draw.source, draw.shard) for draw in task.draws}
        found = [(self._setup.sources[source], shard) for source, shard in used]
        names = {each.store.shown(each.shards[n].name) for each, n in found if isinstance(each, SourceSetup)}
        return ", ".join(sorted(names)) or "drawn scans alone"

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._held:
            worker.connection.close()
        for worker in self._held:
            worker.close()
        self._held.clear()
