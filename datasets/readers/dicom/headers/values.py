"""Values of a header that may hold anything, and pydicom without its warnings."""

import logging
import math
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

_TEXT_VRS = ("CS", "DS", "IS", "LO", "SH", "UI")


def value(dataset: Dataset, keyword: str) -> Any:
    """The element's value; None where it is absent, empty or cannot be parsed."""
    try:
        found = dataset.get(keyword)
    except Exception:  # pydicom parses on access, and damage raises whatever it happens to hit
        return None
    return None if found is None or found == "" else found


def text(dataset: Dataset, keyword: str) -> str:
    """The element as stripped text, the first of several values; '' where there is none."""
    return next(iter(texts(dataset, keyword)), "")


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """All values as stripped text."""
    plain = _plain_texts(dataset, keyword)
    if plain is not None:
        return plain
    found = value(dataset, keyword)
    if found is None:
        return ()
    several = found if not isinstance(found, str | bytes) and isinstance(found, Iterable) else [found]
    return tuple(str(one).replace("\0", "").strip() for one in several)


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, or None."""
    several: Any = _plain_texts(dataset, keyword)
    if several is None:
        found = _unsigned(dataset, keyword)
        found = value(dataset, keyword) if found is None else found
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


def integer(dataset: Dataset, keyword: str, default: int) -> int:
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


@cache
def _of_keyword(keyword: str) -> tuple[Any, str]:
    """(tag, VR) in the standard's dictionary."""
    tag = tag_for_keyword(keyword)
    return tag, dictionary_VR(tag) if tag is not None else ""


def _raw(dataset: Dataset, keyword: str, vrs: tuple[str, ...]) -> tuple[bytes, bool] | None:
    """(bytes in the file, whether little endian) of an element of one of these VRs that nobody has parsed yet."""
    tag, vr = _of_keyword(keyword)
    found = dataset.get_item(tag) if vr in vrs else None
    if isinstance(found, RawDataElement) and found.VR in (None, vr) and isinstance(found.value, bytes):
        return found.value, found.is_little_endian
    return None


def _plain_texts(dataset: Dataset, keyword: str) -> tuple[str, ...] | None:
    """All values of a plain ASCII text, without pydicom's parser: it takes a third of all time."""
    found = _raw(dataset, keyword, _TEXT_VRS)
    if found is None or not found[0].isascii() or b"\x1b" in found[0]:
        return None
    joined = found[0].decode("ascii").replace("\0", "").strip()
    return tuple(part.strip() for part in joined.split("\\")) if joined else ()


def _unsigned(dataset: Dataset, keyword: str) -> int | None:
    """One unsigned number of 16 bits, likewise."""
    found = _raw(dataset, keyword, ("US",))
    if found is None or len(found[0]) != 2:
        return None
    return int(struct.unpack("<H" if found[1] else ">H", found[0])[0])


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Within, pydicom neither warns nor logs nor refuses a value that breaks the rules of its VR."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
