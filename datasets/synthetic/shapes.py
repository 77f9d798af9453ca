"""Label maps: random shapes of several kinds, bent together by one smooth field."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.synthetic.config import SyntheticConfig
from scanfoundry.datasets.synthetic.kinds import KINDS
from scanfoundry.datasets.synthetic.noise import along, log_uniform, smooth_noise, uniform

BODY = 1  # the label of a body that no shape covers; 0 is the background
_SHARED = 0.2  # probability that a shape has the label of the one before it, as paired organs have
_CORED = 0.3  # probability that a shape has a core of another label, as a ventricle in its wall
_CORE = (0.2, 0.6)  # levels within which the core lies
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Space:
    """Where the voxels of a scan lie, in units of its longest side, with the origin in the middle.

    Attributes:
        shape: (D, H, W) in voxels.
        sides: length along each axis; 0 where there is one voxel.
        places: (3, D, H, W), of each voxel after the deformation.
        reach: the largest displacement.
        rough: (D, H, W), the field that makes surfaces uneven.
    """

    shape: Size3D
    sides: NDArray[np.float64]
    places: Array
    reach: float
    rough: Array

    def box(self, centre: NDArray[np.float64], radius: float) -> tuple[slice, slice, slice]:
        """The voxels that may lie within a distance of a point."""
        slices = []
        for axis, length in enumerate(self.shape):
            if length == 1:
                slices.append(slice(0, 1))
                continue
            scale = length / self.sides[axis]
            low = (centre[axis] - radius - self.reach + self.sides[axis] / 2) * scale
            high = (centre[axis] + radius + self.reach + self.sides[axis] / 2) * scale
            slices.append(slice(max(0, int(low)), max(0, min(length, int(high) + 1))))
        return slices[0], slices[1], slices[2]


def draw_labels(rng: np.random.Generator, shape: Size3D, config: SyntheticConfig) -> NDArray[np.uint8]:
    """A label map (D, H, W): 0 the background, `BODY` a body where there is one, and higher numbers the shapes."""
    space = _space(rng, shape, config)
    labels = np.zeros(shape, np.uint8)
    outside = _outside(rng, space) if rng.random() < config.body else None
    if outside is not None:
        labels[:] = BODY
    count = int(rng.integers(config.shapes[0], config.shapes[1] + 1))
    # Large ones first, so that small ones stay to be seen.
    radii = np.sort(rng.uniform(*config.radius, count))[::-1]
    last = BODY
    for number, radius in enumerate(radii):
        label = last if number and rng.random() < _SHARED else last + 1
        core = label + 1 if rng.random() < _CORED else None
        _paint(rng, space, labels, float(radius), label, core)
        last = core or label
    if outside is not None:
        labels[outside] = 0
    return labels


def _space(rng: np.random.Generator, shape: Size3D, config: SyntheticConfig) -> Space:
    steps = np.ones(3)
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    if len(axes) == 3:
        steps[rng.choice(axes)] = log_uniform(rng, config.elongation)
    sides = np.array(shape) * steps * (np.array(shape) > 1)
    sides /= sides.max()
    amount = uniform(rng, config.deformation)
    cells = cells_of(sides, int(rng.integers(2, 6)))
    places, reach = np.zeros((3, *shape), np.float32), 0.0
    for axis in axes:
        moved = np.float32(amount) * smooth_noise(rng, shape, cells)
        reach = max(reach, float(np.abs(moved).max()))
        middles = ((np.arange(shape[axis]) + 0.5) / shape[axis] - 0.5) * sides[axis]
        places[axis] = moved + along(middles, axis)
    rough = smooth_noise(rng, shape, cells_of(sides, int(rng.integers(6, 12))))
    return Space(shape, sides, places, reach, rough)


def cells_of(sides: NDArray[np.float64], count: int) -> Size3D:
    """Into how many cells each axis is divided where the longest has `count`."""
    depth, height, width = (max(1, round(count * side)) for side in sides)
    return depth, height, width


def _outside(rng: np.random.Generator, space: Space) -> NDArray[np.bool_]:
    """(D, H, W), True outside of a body, which the crop may show a part of."""
    radii = np.maximum(space.sides, 1e-3) * rng.uniform(0.38, 0.7, 3)
    centre = space.sides * rng.uniform(-0.15, 0.15, 3)
    squares = sum(((space.places[axis] - np.float32(centre[axis])) / np.float32(radii[axis])) ** 2 for axis in range(3))
    return np.asarray(squares > 1 + np.float32(uniform(rng, (0.0, 0.25))) * space.rough)


def _paint(
    rng: np.random.Generator, space: Space, labels: NDArray[np.uint8], radius: float, label: int, core: int | None
) -> None:
    """Writes a shape of a random kind into the label map, over what is there."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    radius *= kind.stretch
    centre = space.sides * rng.uniform(-0.5, 0.5, 3)
    rotation = _rotation(rng, space.shape[0] == 1) / radius
    box = space.box(centre, radius * kind.extent)
    offset = centre.astype(np.float32).reshape(3, 1, 1, 1)
    own = np.einsum("ij,jdhw->idhw", rotation.astype(np.float32), space.places[:, *box] - offset)
    level = kind.level(rng, own, space.rough[box])
    part = labels[box]
    part[level < 1] = label
    if core is not None:
        part[level < np.float32(uniform(rng, _CORE))] = core


def _rotation(rng: np.random.Generator, flat: bool) -> NDArray[np.float64]:
    """A random rotation (3, 3): of any kind, or in the plane of H and W."""
    if flat:
        angle = uniform(rng, (0, 2 * np.pi))
        return np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    w, x, y, z = (q := rng.standard_normal(4)) / np.sqrt((q**2).sum())
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
