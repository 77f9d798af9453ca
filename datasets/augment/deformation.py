"""Smooth deformation of a patch: free-form, by cubic B-splines (Rueckert et al. 1999)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanfoundry.datasets.augment.cubic import cubic_weights


def spline_bases(size: Sequence[int], distances: Sequence[float], offsets: Sequence[float]) -> list[Tensor]:
    """Of each axis the weights (n, K) of its K control points at the middles of n voxels.

    Args:
        size: n along D, H, W.
        distances: of control points, in voxels along each axis.
        offsets: where the grid of control points begins, from 0 to 1 of their distance.
    """
    return [torch.from_numpy(_basis(*each)) for each in zip(size, distances, offsets, strict=True)]


def spline_warp(bases: Sequence[Tensor], control: npt.NDArray[np.float32]) -> Tensor:
    """Displacements (D, H, W, 3) in voxels for each voxel of a patch.

    Args:
        bases: see `spline_bases`.
        control: (K_d, K_h, K_w, 3) displacements of the control points in voxels. Below 0.4 of their distance along
            each axis nothing ever folds (Choi and Lee 2000).
    """
    return torch.einsum("dx,hy,wz,xyzc->dhwc", *bases, torch.from_numpy(control))


def _basis(n: int, distance: float, offset: float) -> npt.NDArray[np.float32]:
    """Weights (n, K) of K control points, `distance` voxels apart, at the middles of n voxels: each row sums to 1."""
    place = (np.arange(n) + 0.5) / distance + offset
    first = np.floor(place).astype(int)
    t = place - first
    weights = np.stack(cubic_weights(t), 1)
    basis = np.zeros((n, first[-1] + 4), np.float32)
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights.astype(np.float32), 1)
    return basis
