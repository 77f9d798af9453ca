"""Rotation of convolution kernels by phase shifts, after Cross-D Conv (Yavuz & Yang 2024, arXiv 2411.02441).

The paper keeps 3D kernels, turns them in the Fourier domain by a learned angle (within 45 degrees) and convolves
images with the middle slice. That idea is the paper's; the turn is ours. The authors' code multiplies the
spectrum by exp(-2 pi i (1, 1, 1) . R f), which is a shift by R^T (1, 1, 1) and no rotation: at angle 0 it moves
the kernel by one voxel along every axis. Here a rotation in a plane is three shears (Unser, Thevenaz, Yaroslavsky
1995), and a shear is a phase shift of each line. On the kernel's own periodic grid of odd size this is
- the kernel itself at angle 0, and its voxels reordered (`torch.rot90`) at multiples of 90 degrees, to rounding;
- orthogonal: norms and sums stay, and the reverse rotation undoes it exactly;
- differentiable in the angles, with a jump halfway between two multiples of 90 degrees, where the multiple that
  the shears start from changes. In between it is a trigonometric interpolation that wraps around the borders.
"""

import math

import torch
from torch import Tensor

from scanfoundry.configs.errors import UserError

# Axes of (D, H, W) counted from the end; a positive angle turns the first towards the second.
PLANES = ((-2, -1), (-3, -1), (-3, -2))


def rotate_kernels(kernels: Tensor, angles: Tensor, inverse: bool = False) -> Tensor:
    """Rotate cubic kernels (..., k, k, k), k odd, about their middle voxel.

    Computed in float32 or wider, returned in the type of `kernels`. UserError for other kernels.

    Args:
        angles: (3,) radians, in the planes (H, W), (D, W) and (D, H), applied in this order; `inverse` undoes the
            same angles.
    """
    size = kernels.shape[-1]
    if kernels.dim() < 3 or size % 2 == 0 or kernels.shape[-3:] != (size, size, size):
        raise UserError(
            f"only kernels (..., k, k, k) of odd k can be rotated, not {tuple(kernels.shape)}; "
            "take 'centre' or 'average'"
        )
    wide = kernels.to(torch.promote_types(kernels.dtype, torch.float32))
    turns = list(zip(PLANES, angles.to(wide), strict=True))
    for plane, angle in reversed(turns) if inverse else turns:
        wide = rotate_plane(wide, angle, plane, inverse)
    return wide.to(kernels.dtype)


def rotate_plane(x: Tensor, angle: Tensor, plane: tuple[int, int], inverse: bool = False) -> Tensor:
    """Rotate by one angle (scalar, radians) from the first to the second axis of a square plane of odd size."""
    quarters = round(float(angle.detach()) / (math.pi / 2))
    rest = angle - quarters * (math.pi / 2)  # within 45 degrees, where the shears are small
    if inverse:
        return torch.rot90(three_shears(x, -rest, plane), -quarters, plane)
    return three_shears(torch.rot90(x, quarters, plane), rest, plane)


def three_shears(x: Tensor, angle: Tensor, plane: tuple[int, int]) -> Tensor:
    """The same for angles well within 180 degrees."""
    first, second = plane
    half = torch.tan(angle / 2)
    x = shear(x, first, second, -half)
    x = shear(x, second, first, torch.sin(angle))
    return shear(x, first, second, -half)


def shear(x: Tensor, axis: int, along: int, amount: Tensor) -> Tensor:
    """Shift every line of `axis` by `amount` voxels for each voxel that it lies from the middle on `along`."""
    size = x.shape[axis]
    offsets = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    frequency = torch.fft.rfftfreq(size, dtype=x.dtype, device=x.device)
    shape = [1] * x.dim()
    lines, waves = shape.copy(), shape.copy()
    lines[along], waves[axis] = size, len(frequency)
    phase = -2 * math.pi * amount * offsets.view(lines) * frequency.view(waves)
    spectrum = torch.fft.rfft(x, dim=axis)
    return torch.fft.irfft(spectrum * torch.polar(torch.ones_like(phase), phase), n=size, dim=axis)
