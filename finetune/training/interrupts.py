"""Ctrl-C and a scheduler's SIGTERM: work goes on to the next place where it can be saved, and is left there."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # of a person, and of schedulers
NOTHING = "stopped; the same command goes on with the first trial that is not finished"


class Stopped(KeyboardInterrupt):
    """A study was asked to stop. The text says what is saved and what the same command will repeat."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.signal = number


class Stop:
    """Holds the handlers of a study; `quiet` ones print nothing.

    In the main thread only: elsewhere Python has no handlers, and nothing changes. A signal ends the study where it is,
    unless what runs will look at `asked` soon; a second one does so in any case.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self.asked: int | None = None
        self.at_once = NOTHING  # what to say if it ends where it is
        self._soon = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    @contextmanager
    def soon(self) -> Iterator[None]:
        """Within it `asked` is looked at again and again."""
        before, self._soon = self._soon, True
        try:
            yield
        finally:
            self._soon = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._soon or self.asked is not None:
            raise Stopped(number, self.at_once)
        self.asked = number
        if self._quiet:
            return
        with suppress(OSError):  # no print: it may be what was interrupted
            os.write(2, b"\nstopping after this step; once more stops at once, without saving it\n")
