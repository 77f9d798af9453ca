"""Time as people say it ('10min', '2h', '90s'), and how a study's is dealt to its cells."""

import re
import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator

UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
TESTING_MARGIN = 1.15  # a test takes a little longer than the first case promised
LEAST_SHARE = 0.3  # of a cell's time that it trains, even where testing takes longer than there is


def seconds(value: object) -> object:
    """'10min' -> 600.0; numbers are seconds. ValueError for what is no time."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", value.lower())
        if not found or found[2] not in UNITS:
            raise ValueError(f"'{value}' is no time: write 90s, 10min or 2h")
        value = float(found[1]) * UNITS[found[2]]
    if isinstance(value, bool) or (isinstance(value, int | float) and value <= 0):
        raise ValueError("a time must be longer than nothing: write 90s, 10min or 2h")
    return value


Seconds = Annotated[float, BeforeValidator(seconds)]


class Budget:
    """What is left of a study's time, dealt evenly to the cells that are still to run."""

    def __init__(self, total: float, cells: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._left_cells, self._even = clock, cells, total / max(1, cells)
        self._end = clock() + total

    def training(self, testing: float) -> float:
        """Seconds that the next cell may train for, where its test will take `testing` seconds."""
        share = max(0.0, self._end - self._clock()) / max(1, self._left_cells)
        return max(share - TESTING_MARGIN * testing, LEAST_SHARE * share, 1.0)

    def spent_before(self, seconds: float) -> None:
        """A cell took so long in earlier starts of the study: of its own share, never of that of the others."""
        self._end -= min(seconds, self._even)

    def done(self) -> None:
        """A cell is over, or was there already."""
        self._left_cells -= 1
