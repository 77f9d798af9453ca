"""Values out of a header that may hold anything: never an exception, never a wrong type."""

import math
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset


def value(dataset: Dataset, keyword: str) -> Any:
    """The element's value; None where it is absent, empty or cannot be parsed."""
    try:
        found = dataset.get(keyword)
    except Exception:  # pydicom parses on access, and damage raises whatever it happens to hit
        return None
    return None if found is None or found == "" else found


def text(dataset: Dataset, keyword: str) -> str:
    """As stripped text, the first of several values; '' where there is none."""
    return next(iter(texts(dataset, keyword)), "")


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """All values as stripped text."""
    found = value(dataset, keyword)
    if found is None:
        return ()
    several = found if not isinstance(found, str | bytes) and isinstance(found, Iterable) else [found]
    return tuple(str(one).replace("\0", "").strip() for one in several)


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, or None."""
    found = value(dataset, keyword)
    several = found if not isinstance(found, str | bytes) and isinstance(found, Iterable) else [found]
    try:
        parsed = tuple(float(one) for one in several)
    except (TypeError, ValueError):
        return None
    return parsed if len(parsed) == count and all(math.isfinite(one) for one in parsed) else None


def number(dataset: Dataset, keyword: str) -> float | None:
    """One finite number, or None."""
    parsed = numbers(dataset, keyword, 1)
    return parsed[0] if parsed else None


def whole(dataset: Dataset, keyword: str, default: int) -> int:
    """One integer, or `default`."""
    parsed = number(dataset, keyword)
    return int(parsed) if parsed is not None and parsed == int(parsed) else default


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; [] where it is absent or no sequence."""
    found = value(dataset, keyword)
    try:
        return [item for item in found if isinstance(item, Dataset)] if found is not None else []
    except Exception:  # a sequence that is read late can be damaged too
        return []
