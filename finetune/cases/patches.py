"""Training patches: cropped, mirrored, turned and zoomed in one interpolation; then changed in intensity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.finetune.config.study import AugmentationConfig


@dataclass(frozen=True)
class Window:
    """A patch's place in a scan: continuous position p = centre + matrix (q + warp(q) - size / 2) for the patch's q.

    Positions are in voxels with edges at whole numbers: voxel i covers [i, i + 1). Order D, H, W.
    """

    centre: npt.NDArray[np.float64]
    matrix: npt.NDArray[np.float64]
    size: PositiveSize3D
    warp: Tensor | None = None  # (*size, 3), see `elastic`; points are not followed through it

    def to_patch(self, points: npt.NDArray) -> npt.NDArray:
        """Positions (N, 3) in the scan -> in the patch."""
        return (points - self.centre) @ np.linalg.inv(self.matrix).T + np.array(self.size) / 2

    def to_scan(self, points: npt.NDArray) -> npt.NDArray:
        """Positions (N, 3) in the patch -> in the scan."""
        return (points - np.array(self.size) / 2) @ self.matrix.T + self.centre


def identity_patch(shape: PositiveSize3D, size: PositiveSize3D) -> Window:
    """The patch in the middle of a scan, unturned: plain padding and cropping."""
    # Whole voxels, so that nothing is interpolated.
    centre = np.array([s / 2 + ((p - s) % 2) / 2 for s, p in zip(shape, size, strict=True)])
    return Window(centre, np.eye(3), size)


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
            turned = turned @ _rotation(axis, angles[axis])
    mm = np.diag(spacing)
    scale = np.diag([1.0, zoom, zoom] if flat else [zoom] * 3)
    return np.linalg.inv(mm) @ turned @ mm @ scale @ matrix


def extract(image: Tensor, window: Window, fill: float) -> Tensor:
    """The patch (C, *window.size) of a scan (C, D, H, W), linear; `fill` outside the scan."""
    low, high = _bounds(window, image.shape[1:])
    part = image[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]].float() - fill
    if min(part.shape) == 0:
        return torch.full((len(image), *window.size), fill)
    axes = [torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in window.size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # d h w 3
    if window.warp is not None:
        offsets += window.warp
    points = offsets @ torch.from_numpy(window.matrix).T + torch.from_numpy(window.centre - low)
    grid = (points / torch.tensor(part.shape[1:], dtype=torch.float64) * 2 - 1).flip(-1).float()
    return F.grid_sample(part[None], grid[None], padding_mode="zeros", align_corners=False)[0] + fill


def extract_labels(labels: npt.NDArray[np.uint8], window: Window) -> Tensor:
    """The patch of a label map (D, H, W): of each voxel the label with the largest share of it; 0 outside the map.

    Nearest neighbours would make every turned border a staircase, and a thin wall a broken one.
    """
    low, high = _bounds(window, labels.shape)
    part = np.ascontiguousarray(labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]])
    found = torch.zeros(window.size, dtype=torch.uint8)
    most, rest = torch.zeros(window.size), torch.ones(window.size)
    inside = replace(window, centre=window.centre - low)
    for value in np.unique(part[part > 0]):
        share = extract(torch.from_numpy(part == value)[None].float(), inside, 0.0)[0]
        found, most = torch.where(share > most, int(value), found), torch.maximum(share, most)
        rest -= share
    return torch.where(most > rest, found, 0)


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
    span = (high - low).clamp_min(1e-6)
    images = ((images - low) / span).clamp(0, 1).pow(gamma.exp()) * span + low
    mean = images.mean((1, 2, 3, 4), keepdim=True)
    images = (images - mean) * contrast.exp() + mean + brightness
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


def _rotation(axis: int, angle: float) -> npt.NDArray[np.float64]:
    matrix = np.eye(3)
    i, j = (k for k in range(3) if k != axis)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _bounds(window: Window, shape: Sequence[int]) -> tuple[npt.NDArray, npt.NDArray]:
    """The part of the scan that a patch touches (with a voxel of margin), so that a big scan is not copied."""
    half = np.array(window.size) / 2
    if window.warp is not None:
        half = half + window.warp.abs().amax((0, 1, 2)).double().numpy()
    reach = np.abs(window.matrix) @ half + 1.5
    low = np.clip(np.floor(window.centre - reach), 0, np.array(shape)).astype(int)
    high = np.clip(np.ceil(window.centre + reach), 0, np.array(shape)).astype(int)
    return low, high
