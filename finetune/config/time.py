"""Time as people write it: '10min', '2h', '90s'."""

import re
from typing import Annotated

from pydantic import BeforeValidator

UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


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
