"""How the time of a study is shared among its trials."""

import time
from collections.abc import Callable, Sequence

TESTING_MARGIN = 1.15  # a test takes a little longer than the first case promised
LEAST_SHARE = 0.3  # of a trial's time that it trains, even where testing takes longer than there is


def seconds_for_each(total: float, trials: int, spent: Sequence[float], processes: int) -> float:
    """What is left of a study's time for each of several processes.

    Args:
        total: seconds that the whole study may take.
        trials: how many trials it has.
        spent: seconds that each finished trial took, in earlier starts of the study: of its own share at most.
        processes: how many run at the same time.
    """
    even = total * processes / max(1, trials)
    return total - sum(min(seconds, even) for seconds in spent) / processes


class Budget:
    """What is left of a study's time, dealt evenly to the trials that are still to run."""

    def __init__(self, total: float, trials: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._left, self._even = clock, trials, total / max(1, trials)
        self._end = clock() + total

    def training(self, testing: float) -> float:
        """Seconds that the next trial may train for, where its test will take `testing` seconds."""
        share = max(0.0, self._end - self._clock()) / max(1, self._left)
        return max(share - TESTING_MARGIN * testing, LEAST_SHARE * share, 1.0)

    def spent_before(self, seconds: float) -> None:
        """A trial took so long in earlier starts of the study: of its own share, never of that of the others."""
        self._end -= min(seconds, self._even)

    def done(self) -> None:
        """A trial is over, or was there already."""
        self._left -= 1
