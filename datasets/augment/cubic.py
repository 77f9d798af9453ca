"""Weights of cubic B-splines."""

import numpy as np
from numpy.typing import NDArray


def cubic_weights(t: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The weights of the four knots around a place, from the first one on; they sum to 1.

    Args:
        t: how far the place lies between the second knot and the third, from 0 to 1.
    """
    return [w / 6 for w in ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)]
