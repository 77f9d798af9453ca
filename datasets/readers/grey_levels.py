"""Greys of a mask: black and white that something has blurred, a few levels, classes, or a picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WHITE = 255
MARGIN = 32  # of 255: as far as JPEG carries black and white
NEAR = 0.95  # of the pixels lie within it where a lossy mask is clearly one of black and white
BETWEEN = 0.25  # at most, of the white pixels, lie between
FEW = 16  # values that are believed to be classes however they lie
FLAT = 0.5  # of the pixels of the middle one of many classes have a neighbour of their own value
_STEP, _BOX, _BUMP = 12, 5, 20  # a third grey is a bump: twice what lies a step aside, in so many values, of so many


def distinct(numbers: NDArray[np.integer]) -> dict[int, int]:
    """How many voxels have each value that occurs, in ascending order."""
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize <= 2:
        # Plane by plane: counting widens what it counts to 64 bits.
        size = int(numbers.max()) + 1
        counts = np.zeros(size, np.int64)
        for plane in numbers:
            counts += np.bincount(plane.ravel(), minlength=size)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, sums = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), sums.tolist(), strict=True))


def clearly_black_and_white(counts: NDArray[np.integer], lossy: bool) -> bool:
    """Whether greys are black and white that something has blurred a little, from how many pixels have each of 0..255.

    Nearly all lie near either end, few between, and no third value stands out. Of a file without lossy compression
    (one that was saved from such a file) both ends must show the traces of it: else 1, 2 and 255 may be classes.
    """
    black, white = int(counts[: MARGIN + 1].sum()), int(counts[WHITE - MARGIN :].sum())
    between = int(counts.sum()) - black - white
    if black + white < NEAR * counts.sum() or between > BETWEEN * white or not white:
        return False
    ends = (counts[1 : MARGIN + 1] > 0).sum(), (counts[WHITE - MARGIN : WHITE] > 0).sum()
    if not lossy and (min(ends) < 2 or sum(ends) < 6):
        return False
    return not _bumps(counts).size


def rounded(counts: Mapping[int, int], levels: Sequence[int]) -> dict[int, int] | None:
    """By value of an image that something has blurred a little: the nearest of `levels`, which say what was drawn.

    counts: pixels by value. None where the levels are too close to be told apart, a pixel in twenty lies in the middle
    between two, or another value stands out: it is then not known what the values mean.
    """
    keys, values = np.array(sorted(levels)), np.array([*counts])
    gap = int(np.diff(keys).min()) if len(keys) > 1 else 0
    if gap < MARGIN or not (0 <= values.min() <= values.max() <= WHITE):
        return None
    nearest = keys[np.searchsorted((keys[1:] + keys[:-1]) / 2, np.arange(WHITE + 1))]
    near = np.abs(np.arange(WHITE + 1) - nearest) <= gap // 4
    every = np.zeros(WHITE + 1, np.int64)
    every[values] = [*counts.values()]
    if every[near].sum() < NEAR * every.sum() or not near[_bumps(every)].all():
        return None
    return {int(value): int(nearest[value]) for value in values}


def _bumps(counts: NDArray[np.integer]) -> NDArray[np.intp]:
    """Greys that stand out from those around them, but for black and white themselves."""
    sums = np.convolve(counts, np.ones(_BOX), "same")
    middle, below, above = sums[_STEP:-_STEP], sums[: -2 * _STEP], sums[2 * _STEP :]
    return np.flatnonzero((middle >= _BUMP) & (middle > 2 * below) & (middle > 2 * above)) + _STEP


def runs_of(numbers: NDArray[np.integer]) -> dict[int, tuple[int, int]]:
    """By value other than 0: of how many voxels the next one along W is labelled too, and of how many it has the same
    value. In a map of classes most have it; in greys and along blurred edges hardly any."""
    small = numbers.dtype.kind == "u" and numbers.dtype.itemsize <= 2
    size = int(numbers.max()) + 1 if small else 0
    runs: dict[int, tuple[int, int]] = {}
    totals, sames = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for plane in numbers:
        first, second = plane[..., :-1], plane[..., 1:]
        labelled = (first != 0) & (second != 0)
        first, same = first[labelled], first[labelled] == second[labelled]
        if small:
            totals += np.bincount(first, minlength=size)
            sames += np.bincount(first[same], minlength=size)
            continue
        values, place = np.unique(first, return_inverse=True)
        n, m = np.bincount(place, minlength=len(values)), np.bincount(place[same], minlength=len(values))
        runs = added(runs, {int(value): (int(a), int(b)) for value, a, b in zip(values, n, m, strict=True)})
    return runs if not small else {int(v): (int(totals[v]), int(sames[v])) for v in np.flatnonzero(totals)}


def added(one: dict[int, tuple[int, int]], other: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """The runs of two maps, or planes, together."""
    sums = {value: (one[value][0] + n, one[value][1] + m) for value, (n, m) in other.items() if value in one}
    return one | other | sums


def are_flat(runs: dict[int, tuple[int, int]]) -> bool:
    """Whether the middle one of the values of `runs_of` lies in regions of its own."""
    return bool(np.median([same / max(1, total) for total, same in runs.values()]) >= FLAT) if runs else False


def are_greys(numbers: NDArray[np.integer]) -> bool:
    """Whether a map has many values that are no regions: a picture rather than labels."""
    return int(numbers.max()) > FEW and len(distinct(numbers)) > FEW and not are_flat(runs_of(numbers))
