"""The process that runs parts: it is ended and made anew when a part fails or takes too long."""

import multiprocessing
import os
import re
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

from gpus.parts import Outcome, Part, Refused, Setting

MOST_LINES = 30  # of a traceback
GRACE_S = 5.0  # for a process that was asked to end
OUT_OF_MEMORY = re.compile(r"Tried to allocate ([\d.]+ [KMGT]?i?B)")


class Worker:
    """Runs parts by name in a process of its own, and all that it starts in its process group.

    After a CUDA error nothing more can be asked of a process. So a part that fails ends it, and the next has a new one.

    Args:
        table: gives all parts; a function at the top of a module.
        setting: where parts run.
    """

    def __init__(self, table: Callable[[], list[Part]], setting: Setting) -> None:
        self._table, self._setting = table, setting
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(self, name: str, limit_s: float) -> Outcome:
        """What came of a part, within a limit that counts from here."""
        began = time.monotonic()
        pipe = self._begin()
        pipe.send(name)
        try:
            outcome: Outcome = pipe.recv() if pipe.poll(limit_s) else Outcome("failed", f"ended after {limit_s:.0f} s")
        except EOFError:
            assert self._process is not None
            self._process.join(GRACE_S)
            outcome = Outcome("failed", f"its process ended with code {self._process.exitcode}")
        if outcome.status == "failed":
            self._end()
        return Outcome(outcome.status, outcome.why, time.monotonic() - began, outcome.row, outcome.traceback)

    def _begin(self) -> Connection:
        if self._pipe is None:
            spawn = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
            self._pipe, other = spawn.Pipe()
            self._process = spawn.Process(target=serve, args=(other, self._table, self._setting))
            self._process.start()
            other.close()
        return self._pipe

    def _end(self) -> None:
        """End the process and what it started."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is None or process.pid is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # all have ended, or it has no group yet
            process.kill()
        process.join()


def serve(pipe: Connection, table: Callable[[], list[Part]], setting: Setting) -> None:
    """Run parts by the names that arrive, and send what came of each; what they print goes to a file for each."""
    os.setsid()
    parts = {part.name: part for part in table()}
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        log = os.open(setting.work / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        pipe.send(attempt(parts[name], setting))


def attempt(part: Part, setting: Setting) -> Outcome:
    """Run a part in this process; whatever it raises is what came of it."""
    try:
        return Outcome("done", row=part.run(setting))
    except Refused as error:
        return Outcome("failed", str(error))
    except Exception as error:
        if (asked := OUT_OF_MEMORY.search(str(error))) is not None:
            return Outcome("does not fit", f"asked {asked[1]} beside {held()}")
        lines = traceback.format_exc().splitlines()[-MOST_LINES:]
        said = next(iter(str(error).splitlines()), "")
        return Outcome("failed", f"{type(error).__name__}: {said}", traceback="\n".join(lines))


def held() -> str:
    """The most that tensors of this process held on the device."""
    import torch

    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else "what it had"
