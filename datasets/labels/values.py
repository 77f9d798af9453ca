"""The values of a mask."""

import numpy as np
from numpy.typing import NDArray

from scanforge.datasets.readers.scan import ReadError

Mask = NDArray[np.unsignedinteger]


def whole_numbers(values: NDArray, image: bool) -> Mask:
    """`values` of any shape in the smallest unsigned type; in an `image`, 0 and 255 become 0 and 1.

    ReadError where they are not whole numbers from 0 to 2^32 - 1.
    """
    top = values.max()
    if image and top == 255 and np.isin(values, (0, 255)).all():
        values, top = values // 255, np.uint8(1)
    if values.min() < 0 or top > np.iinfo(np.uint32).max or (values.dtype.kind == "f" and (values % 1).any()):
        raise ReadError("mask: holds other than whole numbers from 0 on")
    return np.ascontiguousarray(values, np.min_scalar_type(int(top)))
