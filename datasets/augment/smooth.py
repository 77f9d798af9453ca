"""Blur and low resolution: one small matrix per sample and axis.

A matrix product costs less than a convolution at the sizes of crops, serves every width in one batch, and treats the
edge of the crop and of the scan alike: only valid voxels are averaged.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.device import to_device

Operators = list[torch.Tensor | None]  # along D, H, W: (n, out, in), or None where nothing happens in any sample
_TAIL = 1e-6


def gaussian(sigma: NDArray[np.float64], shape: Size3D, device: torch.device) -> Operators:
    """Gaussian blur by `sigma` (n, 3) voxels; 0 leaves a sample as it is."""
    return [_gaussian(sigma[:, axis], shape[axis], device) for axis in range(3)]


def _gaussian(sigma: NDArray[np.float64], length: int, device: torch.device) -> torch.Tensor | None:
    if length == 1 or not sigma.any():
        return None
    spread = to_device(np.maximum(sigma, 1e-2), device, torch.float32)[:, None]
    steps = torch.arange(length, device=device, dtype=torch.float32)
    weight = torch.exp(-0.5 * (steps / spread) ** 2)
    weight = torch.where(weight > _TAIL, weight, 0.0)
    # A weight depends on the distance alone: row i is a window of the distances L-1 ... 0 ... L-1.
    both = torch.cat([weight.flip(1), weight[:, 1:]], 1)
    matrix = both.unfold(1, length, 1).flip(1)
    return matrix / matrix.sum(2, keepdim=True)


def coarse(zoom: NDArray[np.float64], shape: Size3D, device: torch.device) -> Operators:
    """Voxels averaged to ones `zoom` (n, 3) times as long, then interpolated back; 1 leaves a sample as it is."""
    return [_coarse(zoom[:, axis], shape[axis], device) for axis in range(3)]


def _coarse(zoom: NDArray[np.float64], length: int, device: torch.device) -> torch.Tensor | None:
    counts = np.maximum(np.round(length / zoom), 1)  # of coarse voxels
    if (counts == length).all():
        return None
    count = to_device(counts, device, torch.float32)[:, None, None]
    size = length / count
    fine = torch.arange(length, device=device, dtype=torch.float32)
    cell = torch.arange(int(counts.max()), device=device, dtype=torch.float32)[:, None]
    overlap = torch.minimum((cell + 1) * size, fine + 1) - torch.maximum(cell * size, fine)
    average = overlap.clamp(min=0) / size
    place = ((fine[:, None] + 0.5) / size - 0.5).clamp(min=0).minimum(count - 1)
    interpolate = (1 - (place - cell[:, 0]).abs()).clamp(min=0)
    return interpolate @ average


def smoothed(voxels: torch.Tensor, valid: torch.Tensor | None, operators: Operators) -> torch.Tensor:
    """Valid voxels through matrices; the others stay.

    Args:
        voxels: (n, C, D, H, W).
        valid: (n, 1, D, H, W); None: all are valid.
        operators: see `gaussian` and `coarse`.
    """
    if all(operator is None for operator in operators):
        return voxels
    if valid is None:
        return through(voxels, operators)
    weight = through(valid.to(voxels.dtype), operators)
    mean = through(torch.where(valid, voxels, 0.0), operators) / weight.clamp(min=_TAIL)
    return torch.where(valid, mean, voxels)


def through(voxels: torch.Tensor, operators: Operators) -> torch.Tensor:
    """`voxels` (n, C, D, H, W) times a matrix per sample along each axis."""
    n, channels, depth, height, width = voxels.shape
    along_d, along_h, along_w = operators
    if along_w is not None:
        rows = voxels.reshape(n, channels * depth * height, width)
        voxels = (rows @ along_w.transpose(1, 2)).view(n, channels, depth, height, -1)
    if along_h is not None:
        voxels = along_h[:, None, None] @ voxels
    if along_d is not None:
        planes = voxels.reshape(n, channels, depth, -1)
        voxels = (along_d[:, None] @ planes).view(n, channels, -1, *voxels.shape[3:])
    return voxels
