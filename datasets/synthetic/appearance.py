"""What a scanner could make of a label map: intensities by label, texture, and the faults of an image.

The order is that of a scan: tissue, the blur of the point spread, the bias of the coil, noise, thick slices; the gamma
stands for all that is not linear. Every step costs a few passes over the voxels.
"""

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.synthetic.config import SyntheticConfig
from scanfoundry.datasets.synthetic.noise import along, log_uniform, smooth_noise, uniform
from scanfoundry.datasets.synthetic.shapes import BODY

LEVELS = 1000  # of an appearance between the darkest and the brightest mean: as many grey values as scanners give
_DARK_AIR = 0.8  # probability that what lies around a body is nearly black
_SMOOTH = (2.5, 8.0)  # voxels over which the texture is smooth
_LEAST_BLUR = 0.3  # voxels; less than this moves nothing
Array = NDArray[np.float32]


def appearance(rng: np.random.Generator, labels: NDArray[np.uint8], config: SyntheticConfig) -> NDArray[np.int16]:
    """One appearance (D, H, W) of a label map (D, H, W).

    Args:
        rng: from which everything is drawn.
        labels: the label map.
        config: ranges.
    """
    depth, height, width = labels.shape
    shape = (depth, height, width)
    image = _tissue(rng, labels, shape, config)
    for axis in range(3):
        image = _blurred(image, axis, uniform(rng, config.blur))
    np.clip(image, 0, None, out=image)
    image **= np.float32(log_uniform(rng, config.gamma))
    if (bias := uniform(rng, config.bias)) > 0:
        cells = int(rng.integers(1, 4))
        image *= np.exp(np.float32(bias) * smooth_noise(rng, shape, (cells, cells, cells)))
    image = _noisy(rng, image, uniform(rng, config.noise), rng.random() < config.rician)
    axes = [axis for axis in range(3) if shape[axis] > 1]
    image = _thick(image, int(rng.choice(axes)), int(rng.integers(config.thickness[0], config.thickness[1] + 1)))
    return np.rint(image * np.float32(LEVELS)).clip(-32768, 32767).astype(np.int16)


def _tissue(rng: np.random.Generator, labels: NDArray[np.uint8], shape: Size3D, config: SyntheticConfig) -> Array:
    """Means by label, with texture and grain."""
    count = int(labels.max()) + 1
    contrast = log_uniform(rng, config.contrast)
    means = 0.5 + contrast * rng.uniform(-0.5, 0.5, count)
    texture, grain = (rng.uniform(*bounds, count) for bounds in (config.texture, config.grain))
    for label in np.flatnonzero(rng.random(count) < config.merged):
        other = int(rng.integers(count))
        means[label], texture[label], grain[label] = means[other], texture[other], grain[other]
    if (labels == BODY).any() and rng.random() < _DARK_AIR:
        means[0], texture[0], grain[0] = uniform(rng, (0.0, 0.05)), 0.0, 0.0
    voxels = uniform(rng, _SMOOTH)
    cells = tuple(max(1, round(length / voxels)) for length in shape)
    image: Array = means.astype(np.float32)[labels]
    image += texture.astype(np.float32)[labels] * smooth_noise(rng, shape, (cells[0], cells[1], cells[2]))
    image += grain.astype(np.float32)[labels] * rng.standard_normal(shape, np.float32)
    return image


def _blurred(image: Array, axis: int, sigma: float) -> Array:
    """Convolved with a Gaussian along an axis; the edge is repeated."""
    length = image.shape[axis]
    if length == 1 or sigma < _LEAST_BLUR:
        return image
    reach = max(1, round(2.5 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.moveaxis(np.pad(image, [(reach * (each == axis),) * 2 for each in range(3)], mode="edge"), axis, 0)
    blurred = np.float32(weights[0]) * padded[:length]
    for first, weight in enumerate(weights[1:], start=1):
        blurred += np.float32(weight) * padded[first : first + length]
    return np.ascontiguousarray(np.moveaxis(blurred, 0, axis))


def _noisy(rng: np.random.Generator, image: Array, sigma: float, rician: bool) -> Array:
    if sigma == 0:
        return image
    image = image + np.float32(sigma) * rng.standard_normal(image.shape, np.float32)
    if not rician:
        return image
    return np.hypot(image, np.float32(sigma) * rng.standard_normal(image.shape, np.float32))


def _thick(image: Array, axis: int, thickness: int) -> Array:
    """Slices of `thickness` voxels along an axis, averaged within, and lines between their middles."""
    length = image.shape[axis]
    count = length // thickness
    if thickness == 1 or count < 2:
        return image
    starts = np.arange(count) * thickness
    lengths = np.diff(np.append(starts, length)).astype(np.float32)
    slices = np.add.reduceat(image, starts, axis) / along(lengths, axis)
    middles = starts + (lengths - 1) / 2
    at = np.interp(np.arange(length), middles, np.arange(count))
    first = np.minimum(at.astype(np.int64), count - 2)
    share = along(at - first, axis)
    return slices.take(first, axis) * (1 - share) + slices.take(first + 1, axis) * share
