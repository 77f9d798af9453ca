"""Processes that die at a chosen step of what they write."""

import os
import traceback
from collections.abc import Callable, Sequence

import pytest

from scanfoundry.datasets.shards.build_progress import BuildProgress
from scanfoundry.datasets.shards.shard_worker import ShardResult, ShardTask, run

STEPS = ("link", "replace", "unlink", "rmdir", "mkdir", "fsync")


def dies_at(number: int, work: Callable[[], object]) -> bool:
    """Does `work` in a forked process that ends as by SIGKILL before its step `number`; True where it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    steps = 0

    def counted(step: Callable) -> Callable:
        def call(*given: object, **named: object) -> object:
            nonlocal steps
            if steps == number:
                os._exit(9)
            steps += 1
            return step(*given, **named)

        return call

    try:
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    except BaseException:  # what failed before the step is shown with the test that waited for it
        traceback.print_exc()
    finally:
        os._exit(1)


def write_here(tasks: Sequence[ShardTask], count: int, progress: BuildProgress) -> None:
    """In place of `shard_pool.run_tasks`: shards are written in this process, so that their steps count too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOSC_NTHREADS", "1")  # as workers have it: a frame's header holds the number
        for task in tasks:
            *_, result = run(task)
            assert isinstance(result, ShardResult)
            progress.add(task.plan.name, result)


def worker_that_dies(connection: object) -> Callable[[object], object]:
    """Factory of a worker process that ends at its first task."""
    return lambda task: os._exit(7)
