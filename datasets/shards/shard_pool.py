"""The worker processes of a build: shards are handed out, and a source that a process dies of is left out."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

from scanfoundry.datasets.processes import Worker, WorkerDied, ready
from scanfoundry.datasets.shards.build_progress import BuildProgress
from scanfoundry.datasets.shards.shard_worker import ShardTask, SourceStarted

_ATTEMPTS = 2  # at a source whose worker dies
_FACTORY = "scanfoundry.datasets.shards.shard_worker:worker"


def run_tasks(tasks: Sequence[ShardTask], count: int, build_progress: BuildProgress) -> None:
    """Write shards in `count` processes.

    Raises:
        UserError: more sources are refused than the build may leave out.
    """
    pending, deaths = deque(tasks), Counter[tuple[str, int]]()
    busy: dict[Worker, ShardTask] = {}
    idle: list[Worker] = []
    build_progress.check_ceiling()
    try:
        while pending or busy:
            while pending and len(busy) < count:
                worker = idle.pop() if idle else Worker(_FACTORY)
                busy[worker] = pending.popleft()
                worker.send(busy[worker])
            build_progress.report()
            for worker in ready(busy):
                name, reply = busy[worker].plan.name, worker.receive()
                if isinstance(reply, SourceStarted):
                    build_progress.underway[name] = reply.number
                elif isinstance(reply, WorkerDied):
                    number = build_progress.underway.pop(name, 0)
                    deaths[name, number] += 1
                    pending.append(_retried(busy.pop(worker), number, deaths[name, number], reply))
                else:
                    idle.append(worker)
                    del busy[worker]
                    build_progress.add(name, reply)
        build_progress.report()
    finally:
        for worker in [*busy, *idle]:
            worker.close()


def _retried(task: ShardTask, number: int, deaths: int, died: WorkerDied) -> ShardTask:
    """The task once more; without the source that it dies of."""
    if deaths < _ATTEMPTS:
        return task
    reason = f"the process that read it died {deaths} times (exit status {died.status}; -9 is mostly lack of memory)"
    return replace(task, deadly={**task.deadly, number: reason})
