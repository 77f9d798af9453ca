"""The values of a mask: whole numbers; of a picture in black and white 0 and 255, or 0 and 1."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.grey_levels import MARGIN, WHITE, clearly_black_and_white
from scanfoundry.datasets.readers.labels import Greys
from scanfoundry.datasets.readers.scan import ReadError, Scan

Mask = NDArray[np.unsignedinteger]


class RawMask(NamedTuple):
    """What a mask file holds.

    Attributes:
        numbers: (D, H, W) of the smallest integer type.
        cut: the numbers were greys, and are now 0 and 255.
        lossy: the file's compression has changed them.
        palette: (N, 3), the colours that they were drawn in.
    """

    numbers: NDArray[np.integer]
    cut: bool = False
    lossy: bool = False
    palette: NDArray[np.uint8] | None = None


def raw_of(scan: Scan, cut: bool = True) -> RawMask:
    """The numbers of a scan that is a mask.

    Args:
        scan: as its reader returns it. Of a palette the indices count.
        cut: greys that are clearly black and white become 0 and 255.

    Raises:
        ReadError: the channels differ, or the values are fractions.
    """
    if scan.indices is not None:
        return RawMask(scan.indices, palette=scan.palette)
    if any(not np.array_equal(scan.voxels[0], other) for other in scan.voxels[1:]):
        raise ReadError("mask: in colours; give one number per class")
    numbers = exact(scan.voxels[0])
    may_be = is_image(scan) and numbers.dtype == np.uint8 and numbers.max() >= WHITE - MARGIN and not is_white(numbers)
    if cut and may_be and clearly_black_and_white(np.bincount(numbers.ravel(), minlength=256), scan.lossy):
        return RawMask((numbers > WHITE // 2).astype(np.uint8) * np.uint8(WHITE), True, scan.lossy)
    return RawMask(numbers, False, scan.lossy)


def is_image(scan: Scan) -> bool:
    """Whether it has no place in the world: a picture, whose black and white may be 0 and 255."""
    return scan.affine is None and not scan.orientation


def exact(values: NDArray) -> NDArray[np.integer]:
    """`values` of any shape in the smallest integer type.

    Raises:
        ReadError: they are fractions, or need over 32 bits.
    """
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


def whole_numbers(values: NDArray, image: bool) -> Mask:
    """`values` of any shape in the smallest unsigned type; in an `image`, 0 and 255 become 0 and 1.

    Raises:
        ReadError: they are not whole numbers from 0 to 2^32 - 1.
    """
    numbers = exact(values)
    if numbers.dtype.kind == "i":
        raise ReadError("mask: holds other than whole numbers from 0 on")
    unsigned: Mask = numbers.astype(numbers.dtype, copy=False)
    return unsigned // np.uint8(WHITE) if image and is_white(numbers) else unsigned


def is_white(numbers: NDArray[np.integer]) -> bool:
    """Whether a mask holds 255, and nothing else but 0."""
    return numbers.dtype == np.uint8 and numbers.max() == WHITE and bool(((numbers == 0) | (numbers == WHITE)).all())


def as_drawn(mask: Mask, greys: Greys) -> Mask:
    """A mask of `labels.Labels` as its file had it: 0 and 255 where that is what 0 and 1 stand for."""
    return mask * np.uint8(WHITE) if greys else mask
