"""Checkpoints that are written while the training goes on.

What a rank holds is copied into host memory; a thread writes the copy, and on the first rank another one then seals
the folder and makes the release. No thread takes part in a collective: the ranks agree in the main thread, after every
few steps while a checkpoint is in flight, where all of them are at the same place. A file system that hangs is noticed
by the next checkpoint, which waits for the one before it under the watchdog's eyes.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, NoReturn, TypeVar

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.checkpoint import seal
from scanfoundry.pretrain.distributed.world import World, gather_objects, largest

Write = Callable[[Path], list[Written]]
Release = Callable[[Path], object]  # is given the sealed checkpoint
T = TypeVar("T")
QUIET_S = 1.0  # that a checkpoint may wait for the one before without a word
DONE, RUNNING, FAILED = 0, 1, 2  # of a rank's task; the ranks agree on the largest


class Task(Generic[T]):
    """A call in a thread of its own. `result` once it is done, `problem` where the system refused something."""

    result: T

    def __init__(self, call: Callable[[], T]) -> None:
        self.problem: OSError | None = None
        self._bug: Exception | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except OSError as error:
            self.problem = error
        except Exception as error:
            self._bug = error

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is done, or so long."""
        self._thread.join(seconds)

    def state(self) -> int:
        """DONE, RUNNING or FAILED. An error that is not the system's is raised here, on this rank alone."""
        if self._thread.is_alive():
            return RUNNING
        if self._bug is not None:
            raise self._bug
        return DONE if self.problem is None else FAILED


@dataclass
class _Flight:
    """A checkpoint that is being written. part: what is going on, the same on all ranks: files, seal, release."""

    step: int
    content: dict[str, Any]  # of the seal
    release: Release | None
    task: Task[Any]
    part: Literal["files", "seal", "release"]


class CheckpointWriter:
    """Writes one checkpoint at a time beside the training; a context manager.

    Every rank calls `begin`, `look` and `wait` at the same places. Whichever of them learns of it raises UserError on
    all ranks where a rank could not write (disk full, no permission): earlier checkpoints stay. What the release meets
    is raised as the OSError that it is, on all ranks too.

    Args:
        root: of the checkpoints.
        keep_last: how many are kept.
        world: the ranks.
        tell: shows a line to the user.
    """

    def __init__(self, root: Path, keep_last: int, world: World, tell: Callable[[str], None]) -> None:
        self._root, self._keep_last, self._world, self._tell = root, keep_last, world, tell
        self._flight: _Flight | None = None
        self.saved: Path | None = None  # the newest that was sealed here

    def begin(self, step: int, stream: dict[str, Any], write: Write, release: Release | None = None) -> None:
        """Start to write the checkpoint of `step`, once the one before is done.

        Args:
            step: optimiser steps taken.
            stream: the position of the sampling plan and its sources' manifests, for the seal.
            write: writes this rank's files, in the thread; nothing that it reads may change.
            release: is called in the thread on the first rank, once the checkpoint is sealed.
        """
        self.wait()
        temporary = seal.temporary_folder(self._root, step)
        content = {"step": step, "stream": stream}
        problem: OSError | None = None
        if self._world.is_main:
            try:
                seal.make_anew(temporary)
            except OSError as error:
                problem = error
        if largest(FAILED if problem else DONE, self._world):
            self._fail(step, "files", problem)
        task: Task[Any]
        if self._world.size == 1:  # nobody to wait for: the seal comes without another step in between
            task = Task(lambda: self._seal(step, content, [write(temporary)]))
        else:
            task = Task(lambda: write(temporary))
        self._flight = _Flight(step, content, release, task, "seal" if self._world.size == 1 else "files")

    def release(self, step: int, saved: Path, release: Release) -> None:
        """Start the release of a checkpoint that lies there already."""
        self.wait()
        self._flight = _Flight(step, {}, release, self._on_main(lambda: release(saved)), "release")

    def look(self) -> None:
        """Learn how far the checkpoint in flight is, if there is one, and go on with its next part."""
        if self._flight is None:
            return
        flight, task = self._flight, self._flight.task
        state = largest(task.state(), self._world)
        if state == FAILED:
            task.wait()  # what this rank writes, too, must have an end before the folder goes
            self._flight = None
            self._fail(flight.step, flight.part, task.problem)
        if state == DONE:
            self._next(flight)

    def wait(self, step: int | None = None) -> None:
        """Wait until nothing is in flight.

        Args:
            step: whose checkpoint waits, for the line that says so.
        """
        told = step is None
        while self._flight is not None:
            self._flight.task.wait(QUIET_S)
            before = self._flight
            self.look()
            if not told and self._flight is before and before.task.state() == RUNNING:
                told = True
                self._tell(
                    f"step {step}: waiting for the checkpoint of step {before.step}, which is still being written; "
                    "a larger checkpoint_every or a faster disk avoids it"
                )

    def _next(self, flight: _Flight) -> None:
        """The part after the one that all ranks have done."""
        if flight.part == "files":
            everything = gather_objects(flight.task.result, self._world)
            flight.task = self._on_main(lambda: self._seal(flight.step, flight.content, everything))
            flight.part = "seal"
            return
        if flight.part == "seal":
            self.saved = saved = seal.final_folder(self._root, flight.step)
            if flight.release is not None:
                release = flight.release
                flight.task, flight.part = self._on_main(lambda: release(saved)), "release"
                return
        self._flight = None

    def _on_main(self, call: Callable[[], object]) -> Task[Any]:
        """A task on the first rank; on others one that has nothing to do."""
        return Task(call if self._world.is_main else _nothing)

    def _seal(self, step: int, content: dict[str, Any], everything: list[list[Written]]) -> None:
        final = seal.final_folder(self._root, step)
        seal.seal(seal.temporary_folder(self._root, step), final, content, everything)
        seal.remove_old(self._root, self._keep_last)

    def _fail(self, step: int, part: str, problem: OSError | None) -> NoReturn:
        """Raise on all ranks what went wrong on one."""
        mine = None if problem is None else (problem.errno, problem.strerror or str(problem), problem.filename)
        number, reason, name = next(each for each in gather_objects(mine, self._world) if each is not None)
        if part == "release":
            raise OSError(number, reason, name)
        if self._world.is_main:
            shutil.rmtree(seal.temporary_folder(self._root, step), ignore_errors=True)
        reason = " ".join(reason.split()) or "unknown"
        raise UserError(
            f"cannot write checkpoint {seal.final_folder(self._root, step)}: {reason}; "
            "earlier checkpoints are untouched"
        )

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let this rank's thread end; alone, finish what is in flight, since there is nobody to agree with."""
        flight = self._flight
        if flight is None or isinstance(error, KeyboardInterrupt):  # a second Ctrl-C: the person means it
            return
        if self._world.size == 1 and isinstance(error, Exception):
            self._finish_alone()
        flight.task.wait()

    def _finish_alone(self) -> None:
        try:
            self.wait()
        except (OSError, UserError) as error:  # beside the error that ends the run
            self._tell(f"the checkpoint that was being written is lost: {error}")


def _nothing() -> None:
    """What other ranks do while the first seals and releases."""
