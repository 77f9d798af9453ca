"""Which of several parts each draw comes from: exact shares, random order, and the count of earlier draws for free."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.crop import mix, permutation

_UNIT = 1 << 32  # shares are held as integers, so that counting is exact at any position


class Mixture:
    """An endless sequence of part numbers, in blocks that are permuted each by its own seed.

    After n draws, part s was drawn share_s * n times, to within one per part; no draw needs the ones before it.
    """

    def __init__(self, shares: Sequence[float], block: int, seed: int) -> None:
        total = sum(shares)
        self._weights = [max(1, round(share / total * _UNIT)) for share in shares]
        self._block, self._seed = block, seed
        self._of_block = lru_cache(maxsize=8)(self._make_block)

    def counts(self, draws: int) -> list[int]:
        """How often each part occurs in the first `draws` draws, at a multiple of the block's length."""
        counts, left, weight = [], draws, sum(self._weights)
        for share in self._weights:
            # Rounded against all parts that are left; so every count grows with `draws` and they sum up to it.
            count = (2 * left * share + weight) // (2 * weight)
            counts.append(count)
            left, weight = left - count, weight - share
        return counts

    def drawn(self, draws: int) -> list[int]:
        """How often each part occurs in the first `draws` draws, at any number of them."""
        number, place = divmod(draws, self._block)
        parts = self._of_block(number)[0][:place]
        within = np.bincount(parts, minlength=len(self._weights)).tolist()
        return [count + more for count, more in zip(self.counts(number * self._block), within, strict=True)]

    def find(self, part: int, rank: int) -> int:
        """The draw that comes from a part after `rank` earlier ones did; the inverse of `locate`."""
        low, high = 0, 1  # blocks: the draw is not before the first, and is before the second
        while self.counts(high * self._block)[part] <= rank:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.counts(middle * self._block)[part] <= rank else (low, middle)
        parts, ranks = self._of_block(low)
        return low * self._block + int(np.flatnonzero((parts == part) & (ranks == rank))[0])

    def _make_block(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        before = np.array(self.counts(number * self._block))
        after = np.array(self.counts((number + 1) * self._block))
        parts = np.repeat(np.arange(len(before)), after - before)
        parts = parts[permutation(mix(self._seed, number), self._block)]
        ranks = np.empty(self._block, np.int64)
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            ranks[here] = before[part] + np.arange(here.size)
        return parts, ranks

    def locate(self, draw: int) -> tuple[int, int]:
        """The part that draw number `draw` comes from, and how many earlier draws came from it."""
        number, place = divmod(draw, self._block)
        parts, ranks = self._of_block(number)
        return int(parts[place]), int(ranks[place])
