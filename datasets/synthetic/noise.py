"""Smooth random fields, without a Fourier transform and without BLAS, whose rounding depends on its threads."""

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.augment.cubic import cubic_weights

_VARIANCE = 151 / 315  # of a cubic B-spline with independent coefficients of variance 1, mean over a cell


def uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A number between two bounds, evenly."""
    return float(rng.uniform(*bounds))


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A number between two positive bounds, evenly in its logarithm."""
    return float(np.exp(rng.uniform(*np.log(bounds))))


def smooth_noise(rng: np.random.Generator, shape: Size3D, cells: Size3D) -> NDArray[np.float32]:
    """A random field (D, H, W) of mean 0 and variance 1 that varies over lengths of a cell.

    A cubic B-spline with normal coefficients, along one axis after the other: the first two steps are on small arrays.

    Args:
        rng: from which it is drawn.
        shape: (D, H, W) of the field; it is constant along an axis of length 1.
        cells: into which each axis is divided, 1 at least.
    """
    knots = [1 if length == 1 else count + 3 for length, count in zip(shape, cells, strict=True)]
    field = rng.standard_normal(knots, np.float32)
    for axis in (2, 1, 0):
        if shape[axis] > 1:
            field = _spline(field, axis, shape[axis], cells[axis])
    axes = sum(length > 1 for length in shape)
    return np.multiply(field, np.float32(_VARIANCE ** (-axes / 2)), dtype=np.float32)


def _spline(knots: NDArray[np.float32], axis: int, length: int, cells: int) -> NDArray[np.float32]:
    """The values of a cubic B-spline at the middles of `length` voxels that lie in `cells` cells."""
    at = (np.arange(length) + 0.5) / length * cells
    first = np.minimum(at.astype(np.int64), cells - 1)
    t = at - first
    found = np.zeros((), np.float32)
    for number, weight in enumerate(cubic_weights(t)):
        found = found + knots.take(first + number, axis) * along(weight, axis)
    return found


def along(values: NDArray[np.floating], axis: int) -> NDArray[np.float32]:
    """Numbers (n,) as an array of three axes, n long along one of them, which broadcasts over the others."""
    shape = [1, 1, 1]
    shape[axis] = len(values)
    return values.astype(np.float32).reshape(shape)
