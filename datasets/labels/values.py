"""The values of a mask: whole numbers, and whether an image of greys is clearly one of black and white."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scanforge.datasets.labels.labels import Greys
from scanforge.datasets.readers.scan import ReadError, Scan

Mask = NDArray[np.unsignedinteger]
WHITE = 255
MARGIN = 32  # of 255: as far as JPEG carries black and white
NEAR = 0.95  # of the pixels lie within it where a lossy mask is clearly one of black and white
BETWEEN = 0.25  # at most, of the white pixels, lie between
FEW = 16  # values that are believed to be classes however they lie
FLAT = 0.5  # of the pixels of the middle one of many classes have a neighbour of their own value
_STEP, _BOX, _BUMP = 12, 5, 20  # a third grey is a bump: twice what lies a step aside, in so many values, of so many


class Raw(NamedTuple):
    """What a mask file holds. numbers: (D, H, W) of the smallest integer type. cut: they were greys, and are now 0 and
    255. lossy: the file's compression has changed them. palette: (N, 3), the colours that they were drawn in."""

    numbers: NDArray[np.integer]
    cut: bool = False
    lossy: bool = False
    palette: NDArray[np.uint8] | None = None


def raw_of(scan: Scan, cut: bool = True) -> Raw:
    """The numbers of a scan that is a mask: of a palette the indices; greys that are clearly black and white as 0 and
    255, unless `cut` is False. ReadError where its channels differ, or it holds fractions."""
    if scan.indices is not None:
        return Raw(scan.indices, palette=scan.palette)
    if any(not np.array_equal(scan.voxels[0], other) for other in scan.voxels[1:]):
        raise ReadError("mask: in colours; give one number per class")
    numbers = exact(scan.voxels[0])
    may_be = is_image(scan) and numbers.dtype == np.uint8 and numbers.max() >= WHITE - MARGIN and not is_white(numbers)
    if cut and may_be and clearly_black_and_white(np.bincount(numbers.ravel(), minlength=256), scan.lossy):
        return Raw((numbers > WHITE // 2).astype(np.uint8) * np.uint8(WHITE), True, scan.lossy)
    return Raw(numbers, False, scan.lossy)


def is_image(scan: Scan) -> bool:
    """Whether it has no place in the world: a picture, whose black and white may be 0 and 255."""
    return scan.affine is None and not scan.orientation


def exact(values: NDArray) -> NDArray[np.integer]:
    """`values` of any shape in the smallest integer type; ReadError where they are fractions, or need over 32 bits."""
    low, top = 0 if values.dtype.kind in "bu" else values.min(), values.max()
    if values.dtype.kind == "f" and (values % 1).any():
        which = f" ({low:g} to {top:g}: probabilities? Threshold them first)" if low >= 0 and top <= 1 else ""
        raise ReadError(f"mask: holds other than whole numbers from 0 on{which}")
    if low < -(2**31) or top > np.iinfo(np.uint32).max:
        raise ReadError(f"mask: holds other than whole numbers from 0 on, of 32 bits ({low:g} to {top:g})")
    kind = np.min_scalar_type(int(top)) if low >= 0 else np.result_type(np.int8, np.min_scalar_type(int(low)))
    if low < 0:
        kind = np.result_type(kind, np.min_scalar_type(int(top)))
    return np.ascontiguousarray(values, kind)


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


def distinct(numbers: NDArray[np.integer]) -> dict[int, int]:
    """How many voxels have each value that occurs, in ascending order."""
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize <= 2:
        # Plane by plane: counting widens what it counts to 64 bits.
        size = int(numbers.max()) + 1
        counts = sum(np.bincount(plane.ravel(), minlength=size) for plane in numbers)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, sums = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), sums.tolist(), strict=True))


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


def whole_numbers(values: NDArray, image: bool) -> Mask:
    """`values` of any shape in the smallest unsigned type; in an `image`, 0 and 255 become 0 and 1.

    ReadError where they are not whole numbers from 0 to 2^32 - 1.
    """
    numbers = exact(values)
    if numbers.dtype.kind == "i":
        raise ReadError("mask: holds other than whole numbers from 0 on")
    return numbers // np.uint8(WHITE) if image and is_white(numbers) else numbers


def is_white(numbers: NDArray[np.integer]) -> bool:
    """Whether a mask holds 255, and nothing else but 0."""
    return numbers.dtype == np.uint8 and numbers.max() == WHITE and bool(((numbers == 0) | (numbers == WHITE)).all())


def as_drawn(mask: Mask, greys: Greys) -> Mask:
    """A mask of `labels.Labels` as its file had it: 0 and 255 where that is what 0 and 1 stand for."""
    return mask * np.uint8(WHITE) if greys else mask
