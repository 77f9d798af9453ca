"""Is a converted volume where its headers put it?"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.geometry import Grid

AGREEMENT = 1e-3  # mm between our corners of a volume and the converter's


def place(affine: NDArray[np.float64], shape: Sequence[int], grid: Grid) -> NDArray[np.float64] | None:
    """Where a converted volume lies: `affine` if it agrees with `grid` but for turned axes, None if it does not.

    The converter measures the step between two slices, whose rounding grows over the stack: there ours is returned.
    """
    if tuple(shape) != grid.shape:
        return None
    turned = turn_like(affine, grid.affine, grid.shape)
    apart = corners_apart(affine, turned, shape)
    if apart <= AGREEMENT + grid.lean:
        return affine
    return turned if apart <= AGREEMENT + grid.lean + 2 * grid.jitter * grid.shape[2] else None


def turn_like(affine: NDArray[np.float64], ours: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """`ours` with those axes reversed that `affine` has the other way round."""
    turned = ours.copy()
    for axis in range(3):
        if affine[:3, axis] @ turned[:3, axis] < 0:
            turned[:3, 3] += turned[:3, axis] * (shape[axis] - 1)
            turned[:3, axis] *= -1
    return turned


def corners_apart(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """The largest distance in mm between a corner of the volume under `one` affine and under the `other`."""
    corners = np.stack([*np.meshgrid(*[(0, size - 1) for size in shape[:3]]), np.ones((2, 2, 2))]).reshape(4, -1)
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())
