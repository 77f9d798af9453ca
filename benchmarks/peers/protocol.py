"""How a benchmark talks to a loader in a process of its own, so that rounds of several loaders can be interleaved.

The loader's process builds its loader, writes {"ready": true} and waits. To "round 3.0" it answers with
{"crops": delivered, "seconds": taken}; at the end of its input it ends. A failure is {"error": reason}. One JSON
object per line. It leads a process group, which dies with it. Only the standard library is imported here: the loaders
live in another environment.

A round first hands out, uncounted, as many batches as can have been made while the loader was idle; what is counted
was made in the round. It ends with a whole turn of the workers, since their batches come in bunches.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO


class Rounds(Protocol):
    """What a loader's process serves."""

    def round(self, seconds: float) -> tuple[int, float]:
        """Deliver for at least `seconds`: the number of crops, and the seconds that they took."""
        ...


class BatchRounds:
    """Rounds over an endless iterator of batches of `batch` crops.

    ahead: batches that can lie ready or under way when a round begins. turn: workers. touch: reads a batch.
    """

    def __init__(
        self, batches: Iterator[Any], batch: int, ahead: int, turn: int, touch: Callable[[Any], object]
    ) -> None:
        self._batches, self._batch, self._ahead, self._turn, self._touch = batches, batch, ahead, max(1, turn), touch

    def round(self, seconds: float) -> tuple[int, float]:
        """See `Rounds`; at least two turns."""
        for _ in range(self._ahead):
            self._touch(next(self._batches))
        began, taken, count = time.perf_counter(), 0.0, 0
        while taken < seconds or count < 2 * self._turn or count % self._turn:
            self._touch(next(self._batches))
            count += 1
            taken = time.perf_counter() - began
        return count * self._batch, taken


def serve(build: Callable[[], Rounds]) -> None:
    """Answer rounds until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        rounds = build()
        _say(answers, ready=True)
        for line in sys.stdin:
            word, _, argument = line.partition(" ")
            if word != "round":
                raise ValueError(f"not a request: {line!r}")
            crops, seconds = rounds.round(float(argument))
            _say(answers, crops=crops, seconds=seconds)
    except Exception as error:
        traceback.print_exc()
        _say(answers, error=f"{type(error).__name__}: {error}")
    _end()


def _end() -> None:
    """Loaders differ in how well they end, and workers outlive some; nothing of theirs is kept."""
    sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _say(answers: TextIO, **content: Any) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()
