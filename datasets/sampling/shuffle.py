"""The order in which a source's scans are visited: each once before any a second time, few shards at a time."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.crop import mix, permutation


class WindowShuffle:
    """An endless walk over rows that lie in shards.

    Each pass takes the shards in a new order, and shuffles the rows of `window` consecutive shards among each other,
    so that only so many shards are in use at a time. Looking up a visit needs no other one.
    """

    def __init__(self, sizes: Sequence[int] | NDArray[np.integer], window: int, seed: int) -> None:
        """sizes: rows per shard; the rows of a shard follow each other."""
        self._sizes = np.asarray(sizes, np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._sizes)])[:-1]
        self._window, self._seed = window, seed
        self.rows = int(self._sizes.sum())
        self.in_use = min(window, len(self._sizes))  # shards at a time
        self._of_pass = lru_cache(maxsize=4)(self._make_pass)
        self._of_window = lru_cache(maxsize=8)(self._make_window)

    def _make_pass(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards in this pass's order, and the visit at which each window begins."""
        shards = permutation(mix(self._seed, number), len(self._sizes))
        begins = np.concatenate([[0], np.cumsum(self._sizes[shards])])[:-1]
        return shards, begins[:: self._window]

    def _make_window(self, number: int, window: int) -> NDArray[np.int64]:
        shards = self._of_pass(number)[0][window * self._window : (window + 1) * self._window]
        rows = np.concatenate([np.arange(self._firsts[s], self._firsts[s] + self._sizes[s]) for s in shards])
        return rows[permutation(mix(self._seed, number, window), rows.size)]

    def __call__(self, visit: int) -> int:
        """The row of visit number `visit`."""
        number, place = divmod(visit, self.rows)
        begins = self._of_pass(number)[1]
        window = int(np.searchsorted(begins, place, side="right")) - 1
        return int(self._of_window(number, window)[place - begins[window]])
