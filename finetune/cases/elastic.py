"""Smooth random deformation of a training patch: free-form, by cubic B-splines (Rueckert et al. 1999)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.finetune.config.study import AugmentationConfig

DISTANCES = (0.2, 0.5)  # of control points, as shares of the patch's longest side


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
    bases = [_basis(n, distance / step, rng.random()) for n, step in zip(size, spacing, strict=True)]
    control = rng.uniform(-1, 1, (*(basis.shape[1] for basis in bases), 3)) * config.elastic * distance
    if size[0] == 1:
        control[..., 0] = 0.0
    field = torch.from_numpy((control / np.array(spacing)).astype(np.float32))
    return torch.einsum("dx,hy,wz,xyzc->dhwc", *(torch.from_numpy(basis) for basis in bases), field)


def _basis(n: int, distance: float, offset: float) -> npt.NDArray[np.float32]:
    """Weights (n, K) of K control points, `distance` voxels apart, at the middles of n voxels: each row sums to 1."""
    place = (np.arange(n) + 0.5) / distance + offset
    first = np.floor(place).astype(int)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((n, first[-1] + 4), np.float32)
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights.astype(np.float32), 1)
    return basis
