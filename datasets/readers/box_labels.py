"""Boxes from a mask, and boxes compared with the extent of a scan."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scanfoundry.datasets.readers.labels import Box, Point
from scanfoundry.datasets.readers.scan import ReadError

OVERHANG = 2.0  # voxels by which rounding may carry a box over the edge


def boxes_of_mask(mask: NDArray[np.unsignedinteger], names: dict[int, str]) -> tuple[Box, ...]:
    """A tight half-open box around each connected component (diagonals connect) of each value of a mask.

    Args:
        mask: (D, H, W).
        names: of its values. A value without a name gives 'finding' for 1, else 'label <value>'.
    """
    boxes = []
    everywhere = np.ones((3, 3, 3))
    values, numbered = np.unique(mask, return_inverse=True)
    numbered = numbered.reshape(mask.shape) + (values[0] > 0)  # 0 stays the background
    values = values[values > 0]
    for number, around in enumerate(ndimage.find_objects(numbered), start=1):
        value = int(values[number - 1])
        parts, _ = ndimage.label(numbered[around] == number, everywhere)
        label = names.get(value) or ("finding" if value == 1 else f"label {value}")
        for place in ndimage.find_objects(parts):
            pairs = list(zip(around, place, strict=True))
            low = tuple(float(outer.start + inner.start) for outer, inner in pairs)
            high = tuple(float(outer.start + inner.stop) for outer, inner in pairs)
            boxes.append(Box(low, high, label))  # type: ignore[arg-type]
    return tuple(boxes)


def why_no_voxels(x0: float, y0: float, x1: float, y1: float) -> str:
    """Why a box cannot be in voxels, '' where it may be: one within the first voxel is a part of the image's extent."""
    if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:
        return "lies within the first voxel: coordinates are voxels, no fractions of the image; multiply by its size"
    return ""


def fit_boxes(boxes: tuple[Box, ...], shape: tuple[int, ...]) -> tuple[tuple[Box, ...], int]:
    """The boxes within a scan.

    What rounding carried over the edge is cut off there.

    Args:
        boxes: in voxels.
        shape: (D, H, W) of the scan.

    Returns:
        The boxes, and how many are left out because they lie outside of the scan or have no extent.

    Raises:
        ReadError: a box reaches farther over the edge: it is of another scan, or of this one at another size.
    """
    fitted = [(box, fit_box(box.low, box.high, shape)) for box in boxes]
    kept = tuple(Box(*corners, box.label) for box, corners in fitted if corners is not None)
    return kept, len(boxes) - len(kept)


def fit_box(low: Sequence[float], high: Sequence[float], shape: tuple[int, ...]) -> tuple[Point, Point] | None:
    """The first and the last corner of one box within a scan, None where there is nothing of it; as `fit_boxes`."""
    corners, size = np.array([low, high], float), np.array(shape, float)
    if not np.isfinite(corners).all() or (corners[0] >= corners[1]).any():
        return None
    if (corners[1] <= 0).any() or (corners[0] >= size).any():
        return None
    over = max((-corners[0]).max(), (corners[1] - size).max())
    if over > OVERHANG:
        raise ReadError(f"a box reaches {over:g} voxels over the edge: drawn at another size?")
    first, last = np.clip(corners, 0, size).tolist()
    return tuple(first), tuple(last)
