"""A rank that finishes no step for too long ends itself, with the stacks of its threads in the log.

A lost peer leaves the others waiting in a collective, and a dead file system leaves a rank in a read: neither comes
back, and the job would hold its nodes until the time limit. Two of the three means below work even while some C code
holds the interpreter's lock: faulthandler writes the stacks from a thread of its own, and the kernel's timer ends the
process with SIGALRM, an exit status that nothing else has.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

FIRST_STEP = 3.0  # times as long: the first step compiles kernels, fills caches, and reads the checkpoint before
STACKS_AFTER_S = 0.5  # after the line that says what happened
END_AFTER_S = 3.0  # after the line; other ranks, a moment behind, write theirs too before the job is ended
EXIT_STATUS = 128 + signal.SIGALRM  # as a shell and SLURM report it


def collective_timeout_s(step_timeout_s: float) -> float:
    """How long a collective may wait: longer than the watchdog ever does, which says more clearly what happened."""
    return FIRST_STEP * step_timeout_s + 60


class Watchdog:
    """Context manager around a run; `beat` after each step starts the clock anew.

    Args:
        step_timeout_s: without a beat for this long (three times as long before the first), the process ends.
        tell: is given the sentence that goes to stderr, for whoever judges the end of the process.
    """

    def __init__(self, step_timeout_s: float, rank: int = 0, tell: Callable[[str], None] | None = None) -> None:
        self._timeout, self._rank, self._tell = step_timeout_s, rank, tell
        self._log: TextIO | None = sys.__stderr__
        self._done = threading.Event()
        self._step: int | None = None
        self._limit = FIRST_STEP * step_timeout_s
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._timer = signal.getitimer(signal.ITIMER_REAL)  # of whoever calls us, a test's for instance
        self._handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self._arm(self._limit)
        self._thread.start()
        return self

    def beat(self, step: int) -> None:
        """Note that `step` is finished."""
        self._step, self._limit = step, self._timeout
        self._arm(self._timeout)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *self._timer)
        signal.signal(signal.SIGALRM, self._handler if self._handler is not None else signal.SIG_DFL)

    def _arm(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        if self._log is not None:  # a process may have been started without a stderr
            faulthandler.dump_traceback_later(seconds + STACKS_AFTER_S, file=self._log)
        signal.setitimer(signal.ITIMER_REAL, seconds + END_AFTER_S)

    def _watch(self) -> None:
        """Say what happened; in a thread, since the main one hangs."""
        while not self._done.wait(min(1.0, max(0.01, self._deadline - time.monotonic()))):
            if time.monotonic() >= self._deadline:
                since = "since the start" if self._step is None else f"since step {self._step}"
                text = f"rank {self._rank} finished no step for {self._limit:g} s {since} (step_timeout_s)"
                if self._log is not None:
                    line = f"scanfoundry: {text}; it ends here, below is where each of its threads hangs\n"
                    os.write(self._log.fileno(), line.encode())
                if self._tell is not None:
                    self._tell(text)
                return
