"""Keyed hashes by the million: 16 bytes each in one array, where a set of texts takes ten times that."""

import binascii
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

HALVES = np.dtype([("high", ">u8"), ("low", ">u8")])  # of a hash of 32 hex digits
_AT_ONCE = 4096  # that become texts
_COMPARED = 1 << 18  # that are looked up at once
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def halves_of(texts: NDArray[np.bytes_]) -> NDArray[np.void]:
    """Hashes (n,) of 32 lower-case hex digits as numbers, `HALVES`.

    Raises:
        ValueError: one is anything else.
    """
    content = np.ascontiguousarray(texts).tobytes()
    if texts.dtype.itemsize != 32:
        raise ValueError("a hash has 32 digits")
    packed = binascii.unhexlify(content)
    if packed.hex().encode() != content:
        raise ValueError("the digits of a hash are lower case")
    return np.frombuffer(packed, HALVES)


def sorted_unique(parts: Sequence[NDArray[np.void]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The different hashes of all parts, ascending as their texts are: their first and their last 64 bits."""
    high, low = (np.concatenate([part[half] for part in parts]).astype(np.uint64) for half in ("high", "low"))
    order = np.argsort(high)
    high, low = high[order], low[order]
    if ((high[1:] == high[:-1]) & (low[1:] < low[:-1])).any():  # of one patient they are equal, else hardly ever
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
    first = np.ones(len(high), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return high[first], low[first]


class Hashes(Collection[str]):
    """A set of hashes, which comes in ascending order.

    Args:
        parts: of `HALVES`, in any order.
        texts: more hashes.
    """

    def __init__(self, parts: Iterable[NDArray[np.void]] = (), texts: Iterable[str] = ()) -> None:
        more = np.array([text.encode() for text in texts], "S32")
        self._high, self._low = sorted_unique([*parts, halves_of(more)])

    def __len__(self) -> int:
        return len(self._high)

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), _AT_ONCE):
            digits = self.halves(slice(begin, begin + _AT_ONCE)).tobytes().hex()
            yield from (digits[place : place + 32] for place in range(0, len(digits), 32))

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str) or len(text) != 32:
            return False
        try:
            wanted = halves_of(np.array([text.encode()], "S32"))[0]
        except ValueError:
            return False
        begin, end = (int(np.searchsorted(self._high, np.uint64(wanted["high"]), side)) for side in _SIDES)
        return bool((self._low[begin:end] == np.uint64(wanted["low"])).any())

    def missing_in(self, others: "Hashes") -> NDArray[np.void]:
        """Those that `others` does not have, as `HALVES`; among them may be some that it has, if two begin alike."""
        if not len(others):
            return self.halves()
        missing = [self.halves(slice(0, 0))]
        for begin in range(0, len(self), _COMPARED):
            part = self.halves(slice(begin, begin + _COMPARED))
            high, low = part["high"].astype(np.uint64), part["low"].astype(np.uint64)
            place = np.minimum(np.searchsorted(others._high, high), len(others) - 1)
            missing.append(part[(others._high[place] != high) | (others._low[place] != low)])
        return np.concatenate(missing)

    def halves(self, rows: slice = slice(None)) -> NDArray[np.void]:
        """Some of them as numbers, `HALVES`."""
        found = np.empty(len(self._high[rows]), HALVES)
        found["high"], found["low"] = self._high[rows], self._low[rows]
        return found
