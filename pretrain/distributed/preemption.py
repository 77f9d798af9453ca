"""Signals that ask a run to stop: finish the step, agree across ranks, save, leave.

SIGTERM and SIGUSR2 come from schedulers, SIGINT from a person. The handler only sets a flag: a collective save
inside a handler deadlocks, since ranks get the signal at different places.
"""

import signal
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # not at run time: a job installs the handlers before torch takes its seconds to import
    from scanfoundry.pretrain.distributed.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class StopRequest:
    """Context manager that holds the signal handlers while the loop runs."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: the person means it
        self.signal = number

    def flags(self) -> list[float]:
        """For each of `SIGNALS` 1 where this rank was asked by it to stop, to be summed over the ranks."""
        return [float(self.signal == number) for number in SIGNALS]

    def noted(self, sums: Sequence[float]) -> bool:
        """Whether any rank was asked to stop, by the sums of all ranks' `flags`."""
        found = [number for number, count in zip(SIGNALS, sums, strict=True) if count]
        if found:
            self.signal = max(found)
        return bool(found)

    def agreed(self, world: "World") -> bool:
        """Whether any rank was asked to stop, which then all were: the same answer on every rank."""
        from scanfoundry.pretrain.distributed.world import largest

        number = largest(self.signal or 0, world)
        if number:  # else what was noted meanwhile, while this rank waited for the others, stays for the next time
            self.signal = number
        return number != 0
