"""Near-duplicates among many scans: which of them to keep, and which scans resemble a kept one too much.

Scans are sorted by bits (signs of low frequencies of their descriptors), several times, each time by other bits in
another order, and compared with their neighbours alone. This is the sorted-neighbourhood form of locality-sensitive
hashing (Charikar 2002): time is proportional to the number of scans, and a large group of equal bits is a longer chain
of neighbours. What is near is decided by the correlation of the descriptors, whatever the bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR = 0.95  # correlation of descriptors from which on scans are near-duplicates: see benchmarks/results/data.md
_ORDERS = 16  # in which neighbours are compared
_BLOCK = 32  # scans; each is compared with those of its block and of the next one
_BLOCKS = 512  # that are compared at a time, to bound memory
_BITS = 64  # of a scan
_PROPORTION = 1.5  # times may the shares of two scans' sides differ: squeezed into a square is near, a strip is not


@dataclass(frozen=True)
class Describable:
    """Scans of one kind (images, volumes or runs of frames), a row for each.

    Attributes:
        thumbnails: (scans, n) int8 descriptors, see `thumbnail.describe`.
        modalities: (scans,) numbers; only scans of one modality are near-duplicates, but for those of `unknown`.
        unknown: the modality of scans of which it is not known; -1: there is none.
        sides: (scans, 2, 3) lengths of the sides, in voxels and in mm.
        preference: (scans,) distinct numbers; of near-duplicates the one with the lowest is kept.
    """

    thumbnails: NDArray[np.int8]
    modalities: NDArray[np.integer]
    unknown: int
    sides: NDArray[np.float64]
    preference: NDArray[np.integer]


@dataclass(frozen=True)
class NearPair:
    """Scan `row` resembles scan `kept`, which is kept."""

    row: int
    kept: int
    correlation: float


def find_near_duplicates(scans: Describable, threshold: float = NEAR) -> list[NearPair]:
    """Decide which scans to keep, so that those that are left are all unlike each other, as far as they were compared.

    The outcome depends on the scans and their order alone: all sums are of whole numbers.

    Args:
        scans: of one kind.
        threshold: least correlation of near-duplicates.

    Returns:
        Each scan that is not kept with every kept one that it was found to resemble, by (row, kept).
    """
    search = _Search(scans, threshold)
    active = search.known
    while active.size:
        active = _thin_out(search, active)
    is_kept = search.leader == np.arange(len(search.leader))
    found = {(row, int(search.leader[row])) for row in np.flatnonzero(~is_kept).tolist()}
    if found:  # what is dropped may resemble more than the one that it was dropped for
        for one, other in search.neighbours(search.known):
            for row, kept in ((one, other), (other, one)):
                apart = is_kept[kept] & ~is_kept[row]
                found.update(zip(row[apart].tolist(), kept[apart].tolist(), strict=True))
    return [NearPair(row, kept, search.correlation(row, kept)) for row, kept in sorted(found)]


def _thin_out(search: "_Search", active: NDArray[np.intp]) -> NDArray[np.intp]:
    """One sweep over the kept scans of `active`; returns those to sweep again, none where nothing changed.

    Sweeps end: nothing drops the most preferred scan; once its near-duplicates are dropped, nothing changes the most
    preferred one of the others; and so on.
    """
    changed: set[int] = set()
    for rows, others in search.neighbours(active, kept=True):
        for one, other in zip(rows.tolist(), others.tolist(), strict=True):
            if search.leader[one] == one and search.leader[other] == other:
                changed.update(search.drop(one, other))
    return np.array(sorted(row for row in changed if search.leader[row] == row), np.intp)


class _Search:
    """The scans, and whom each is a near-duplicate of so far: itself where it is kept."""

    def __init__(self, scans: Describable, threshold: float) -> None:
        self._scans, self._threshold = scans, threshold
        squares = np.einsum("ij,ij->i", scans.thumbnails, scans.thumbnails, dtype=np.int64)
        self.known = np.flatnonzero(squares)
        self._scale = 1 / np.sqrt(np.maximum(squares, 1))
        self.leader = np.arange(len(squares))
        self._followers: dict[int, list[int]] = {}
        self._bits = self._signs()

    def _signs(self) -> NDArray[np.bool_]:
        """(scans, 64): whether each of the lowest frequencies is above its median: about half of the scans is."""
        lowest = self._scans.thumbnails[:, :_BITS] * self._scale[:, None].astype(np.float32)
        some = lowest[self.known[:: len(self.known) // 4096 + 1]]
        return lowest > (np.median(some, axis=0) if len(some) else 0)

    def neighbours(
        self, rows: NDArray[np.intp], kept: bool = False
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Near-duplicates among `rows` that are neighbours in one of the orders; pairs may come several times.

        kept: leave out what is dropped meanwhile.
        """
        random = np.random.default_rng(0)
        for _ in range(_ORDERS):
            if kept:
                rows = rows[self.leader[rows] == rows]
            packed = np.packbits(self._bits[np.ix_(rows, random.permutation(_BITS))], axis=1)
            order = rows[np.argsort(np.ascontiguousarray(packed).view(">u8")[:, 0], kind="stable")]
            for begin in range(0, len(order), _BLOCK * _BLOCKS):
                yield self._near(order[begin : begin + _BLOCK * (_BLOCKS + 1)])

    def _near(self, order: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Near-duplicates among scans that lie in one block, or in blocks that follow each other."""
        blocks = -(-len(order) // _BLOCK)
        padded = np.full((blocks + 1) * _BLOCK, -1)
        padded[: len(order)] = order
        places = np.concatenate([padded[:-_BLOCK].reshape(blocks, _BLOCK), padded[_BLOCK:].reshape(blocks, _BLOCK)], 1)
        vectors = self._scans.thumbnails[places].astype(np.float32)
        scale = np.where(places < 0, 0, self._scale[places])
        products = np.matmul(vectors[:, :_BLOCK], vectors.transpose(0, 2, 1))
        later = np.arange(2 * _BLOCK) > np.arange(_BLOCK)[:, None]
        near = (products * scale[:, :_BLOCK, None] * scale[:, None] >= self._threshold) & later
        block, row, other = np.nonzero(near)
        one, two = places[block, row], places[block, other]
        fit = self._compatible(one, two)
        return one[fit], two[fit]

    def _compatible(self, one: NDArray[np.intp], two: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether modality and proportions of two scans may be those of one."""
        kinds = self._scans.modalities[one], self._scans.modalities[two]
        same = (kinds[0] == kinds[1]) | (kinds[0] == self._scans.unknown) | (kinds[1] == self._scans.unknown)
        ratios = self._scans.sides[one] / self._scans.sides[two]
        return same & (ratios.max(-1) / ratios.min(-1) <= _PROPORTION).any(-1)

    def correlation(self, one: int, two: int) -> float:
        """Of two descriptors."""
        vectors = self._scans.thumbnails[[one, two]].astype(np.int64)
        return float(vectors[0] @ vectors[1] * self._scale[one] * self._scale[two])

    def drop(self, one: int, other: int) -> list[int]:
        """Keep the preferred one of two near-duplicates; returns all whose fate that changes, and the one kept."""
        kept, dropped = sorted((one, other), key=lambda row: self._scans.preference[row])
        self._followers.setdefault(kept, []).append(dropped)
        self.leader[dropped] = kept
        followers = self._followers.pop(dropped, [])
        near = self._resembling(np.array(followers, np.intp), kept).tolist()
        for row, stays in zip(followers, near, strict=True):
            self.leader[row] = kept if stays else row
            if stays:
                self._followers[kept].append(row)
        return [kept, *followers]

    def _resembling(self, rows: NDArray[np.intp], kept: int) -> NDArray[np.bool_]:
        """Which of some scans are near-duplicates of one."""
        products = self._scans.thumbnails[rows].astype(np.float32) @ self._scans.thumbnails[kept].astype(np.float32)
        near = products * self._scale[rows] * self._scale[kept] >= self._threshold
        return near & self._compatible(rows, np.full(len(rows), kept))
