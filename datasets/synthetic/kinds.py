"""The kinds of shapes. A level is a field in a shape's own coordinates; the shape is where it is below 1.

Coordinates are (3, d, h, w), in units of the shape's radius, from its centre along its own axes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.synthetic.noise import uniform

_AXES = (0.45, 1.0)  # half axes, in units of the radius
_UNEVEN = 2.0  # standard deviations at which the rough field is cut off
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """A kind of shape.

    Attributes:
        level: of the own coordinates and the rough field at the same voxels, (d, h, w).
        extent: how far the shape reaches from its centre, in units of its radius.
        stretch: its radius, in units of the radius that was drawn.
    """

    level: Callable[[np.random.Generator, Array, Array], Array]
    extent: float
    stretch: float = 1.0


def _scaled(rng: np.random.Generator, own: Array) -> Array:
    axes = rng.uniform(*_AXES, 3).astype(np.float32)
    scaled: Array = own / axes.reshape(3, 1, 1, 1)
    return scaled


def _squares(field: Array) -> Array:
    total: Array = np.einsum("idhw,idhw->dhw", field, field)
    return total


def _ellipsoid(rng: np.random.Generator, own: Array, rough: Array) -> Array:
    return _squares(_scaled(rng, own))


def _box(rng: np.random.Generator, own: Array, rough: Array) -> Array:
    """With edges that are rounded: a superellipsoid."""
    fourth = _scaled(rng, own) ** 2
    return np.sqrt(_squares(fourth * fourth))


def _blob(rng: np.random.Generator, own: Array, rough: Array) -> Array:
    """An ellipsoid with an uneven surface."""
    amount = np.float32(uniform(rng, (0.15, 0.6)))
    uneven: Array = np.minimum(np.maximum(rough, -_UNEVEN), _UNEVEN)
    level: Array = _squares(_scaled(rng, own)) - amount * uneven
    return level


def _tube(rng: np.random.Generator, own: Array, rough: Array) -> Array:
    """Thin and bent, with two ends."""
    width, bend = uniform(rng, (0.04, 0.15)), uniform(rng, (0.0, 0.3))
    phase, turns = uniform(rng, (0, 2 * np.pi)), uniform(rng, (0.5, 1.5))
    centre = np.float32(bend) * np.sin(np.float32(np.pi * turns) * own[2] + np.float32(phase))
    across = (own[0] ** 2 + (own[1] - centre) ** 2) / np.float32(width**2)
    return np.maximum(across, own[2] ** 2)


def _sheet(rng: np.random.Generator, own: Array, rough: Array) -> Array:
    """A folded layer within an ellipsoid: where the rough field is near 0."""
    thickness = np.float32(uniform(rng, (0.2, 0.5)))
    return np.maximum(_squares(_scaled(rng, own)), (rough / thickness) ** 2)


KINDS = (
    Kind(_ellipsoid, 1.0),
    Kind(_blob, (1 + 0.6 * _UNEVEN) ** 0.5),
    Kind(_box, 3**0.5),
    Kind(_tube, 1.35, stretch=2.0),
    Kind(_sheet, 1.0, stretch=1.5),
)
