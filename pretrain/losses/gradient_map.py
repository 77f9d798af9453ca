"""The gradient map that Uni4Eye predicts beside the image (Cai et al. 2022, arXiv 2203.04614): Sobel's magnitude."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def gradient_map(voxels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient magnitude (B, C, D, H, W) of scans, and where it is known (B, 1, D, H, W) bool.

    voxels (B, C, D, H, W), valid (B, 1, D, H, W) bool. Sobel's derivatives, [-1, 0, 1] / 2 along an axis and
    [1, 2, 1] / 4 across it, over H and W of images (D = 1), over D, H and W of volumes: the intensity's change per
    voxel, in float32 or wider. It is known where the stencil of 3 voxels along each axis lies inside the crop and on
    valid voxels alone; elsewhere it is 0. Raises ValueError for crops of fewer than 3 voxels along an axis.
    """
    axes = (2, 3, 4) if voxels.shape[2] > 1 else (3, 4)
    if any(voxels.shape[axis] < 3 for axis in axes):
        raise ValueError(f"no stencil of 3 voxels fits in a crop of (D, H, W) = {tuple(voxels.shape[2:])}")
    border = [1, 1, 1, 1, *((1, 1) if len(axes) == 3 else (0, 0))]  # last axis first
    with torch.autocast(voxels.device.type, enabled=False):
        x = voxels.to(torch.promote_types(voxels.dtype, torch.float32))
        square = torch.stack([_derivative(x, along, axes).square() for along in axes]).sum(0)
    known = valid
    for axis in axes:
        first, middle, last = _neighbours(known, axis)
        known = first & middle & last
    known = F.pad(known, border)
    return torch.where(known, F.pad(square.sqrt(), border), 0), known


def _derivative(x: Tensor, along: int, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        first, middle, last = _neighbours(x, axis)
        x = (last - first) / 2 if axis == along else (first + 2 * middle + last) / 4
    return x


def _neighbours(x: Tensor, axis: int) -> list[Tensor]:
    """The voxels before, at and after every inner place of an axis."""
    return [x.narrow(axis, start, x.shape[axis] - 2) for start in range(3)]
