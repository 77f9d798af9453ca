"""What is drawn for training patches; `datasets.augment` does the rest: one engine moves and changes the scans of
pre-training and of fine-tuning."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.datasets.augment import intensity
from scanfoundry.datasets.augment.deformation import spline_bases, spline_warp
from scanfoundry.datasets.augment.geometric import rotation
from scanfoundry.finetune.config.study import AugmentationConfig

DISTANCES = (0.2, 0.5)  # of control points of a deformation, as shares of the patch's longest side
LEAST_EXTENT = 1e-6  # of the intensities of a patch: what varies less is even


def random_matrix(
    rng: np.random.Generator, config: AugmentationConfig, spacing: tuple[float, float, float], flat: bool, turn: bool
) -> npt.NDArray[np.float64]:
    """Mirrors along flip_axes; with the configured probability, rotation (in mm; in 2D within the slice) and zoom."""
    mirror = np.array([-1.0 if axis in config.flip_axes and rng.random() < 0.5 else 1.0 for axis in range(3)])
    matrix = np.diag(mirror)
    angles = np.deg2rad(rng.uniform(-config.rotation, config.rotation, 3))
    zoom = np.exp(rng.uniform(-1, 1) * np.log1p(config.scale))
    if rng.random() >= config.probability:
        return matrix
    turned = np.eye(3)
    if turn:
        for axis in (0,) if flat else (0, 1, 2):
            i, j = (k for k in range(3) if k != axis)
            turned = turned @ rotation(angles[axis : axis + 1], i, j)[0]
    mm = np.diag(spacing)
    scale = np.diag([1.0, zoom, zoom] if flat else [zoom] * 3)
    return np.linalg.inv(mm) @ turned @ mm @ scale @ matrix


def random_warp(
    rng: np.random.Generator, config: AugmentationConfig, spacing: tuple[float, float, float], size: PositiveSize3D
) -> Tensor | None:
    """Displacements (D, H, W, 3) in voxels for each voxel of a patch, with the configured probability; else None.

    Control points lie on a grid of even distance in mm, drawn anew each time, and move by up to `elastic` of it along
    each axis. Below 0.4 of it nothing ever folds (Choi and Lee 2000). A slice is deformed within itself.
    """
    chosen = rng.random() < config.probability
    distance = rng.uniform(*DISTANCES) * float(np.max(np.multiply(size, spacing)))
    if not config.elastic or not chosen:
        return None
    bases = spline_bases(size, [distance / step for step in spacing], [rng.random() for _ in size])
    control = rng.uniform(-1, 1, (*(basis.shape[1] for basis in bases), 3)) * config.elastic * distance
    if size[0] == 1:
        control[..., 0] = 0.0
    return spline_warp(bases, (control / np.array(spacing)).astype(np.float32))


def vary_intensity(images: Tensor, rng: np.random.Generator, config: AugmentationConfig) -> Tensor:
    """Gamma, contrast, brightness, coarser voxels and noise on (B, C, D, H, W), each with the configured probability
    per sample."""

    def draw(reach: float, neutral: float = 0.0) -> Tensor:
        chosen = rng.random(len(images)) < config.probability
        values = np.where(chosen, rng.uniform(-reach, reach, len(images)), neutral)
        return torch.from_numpy(values).float().view(-1, 1, 1, 1, 1)

    gamma, contrast, brightness = draw(config.gamma), draw(config.contrast), draw(config.brightness)
    noise = draw(config.noise).abs()
    low, high = images.amin((1, 2, 3, 4), keepdim=True), images.amax((1, 2, 3, 4), keepdim=True)
    images = intensity.gamma(images, low, high, gamma.exp(), LEAST_EXTENT)
    images = intensity.brightness(intensity.contrast(images, None, contrast.exp()), brightness)
    images = _coarser(images, rng, config)
    return images + noise * torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))


def _coarser(images: Tensor, rng: np.random.Generator, config: AugmentationConfig) -> Tensor:
    """Some samples averaged over larger voxels and brought back: scans of lower resolution, thicker slices."""
    factors = rng.uniform(1, config.coarser, (len(images), 3))
    chosen = rng.random(len(images)) < config.probability
    if config.coarser == 1 or not chosen.any():
        return images
    images = images.clone()
    size = images.shape[2:]
    for i in np.flatnonzero(chosen):
        small = [max(1, round(n / factor)) for n, factor in zip(size, factors[i], strict=True)]
        part = F.interpolate(images[i : i + 1], size=small, mode="area")
        images[i] = F.interpolate(part, size=size, mode="trilinear", align_corners=False)[0]
    return images
