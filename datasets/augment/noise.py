"""Noise that depends on a sample's key alone: each voxel's number is hashed, so no generator, and no device, matters.

The integer mixer is "lowbias32" of C. Wellons' hash prospector (public domain), with the key's second half folded in.
"""

import math

import torch

from scanfoundry.datasets.augment.smooth import Operators, smoothed
from scanfoundry.datasets.device import to_device

_CPU_CHUNK = 1 << 20  # normals at a time: what stays in the cache is twice as fast


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's own copies the sign."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _mixed(x: torch.Tensor, key: torch.Tensor | int) -> torch.Tensor:
    """int32 numbers, in place."""
    x.bitwise_xor_(_shifted(x, 16)).mul_(0x7FEB352D).bitwise_xor_(key)
    x.bitwise_xor_(_shifted(x, 15)).mul_(0x846CA68B - (1 << 32))
    return x.bitwise_xor_(_shifted(x, 16))


def hashed(keys: torch.Tensor, count: int) -> torch.Tensor:
    """`count` evenly distributed 32-bit numbers for each key: (n, 2) int32 to (n, count) int32."""
    x = torch.arange(count, dtype=torch.int32, device=keys.device) + keys[:, :1]
    # Half a mixer follows the second key: alone, it would leave keys of a few different bits related.
    return _mixed(x, _mixed(keys[:, 1:].clone(), 0))


def normals(keys: torch.Tensor, count: int) -> torch.Tensor:
    """(n, count) standard normal numbers by Box and Muller; 16 bits of radius, so none is beyond 4.9."""
    at_once = len(keys) if keys.device.type != "cpu" else max(1, _CPU_CHUNK // count)
    if at_once < len(keys):
        return torch.cat([normals(part, count) for part in keys.split(at_once)])
    bits = hashed(keys, (count + 1) // 2)
    radius = _shifted(bits, 16).float().add_(0.5).mul_(2.0**-16).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(0xFFFF).float().mul_(math.pi / 2**15)
    return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], 1)[:, :count]


def field(keys: torch.Tensor, like: torch.Tensor, stream: int) -> torch.Tensor:
    """Standard normal noise (n, 1, D, H, W) in the shape of `like`; other streams are independent of it."""
    salt = torch.tensor([0, (stream * 0x9E3779B9) & 0x7FFFFFFF], dtype=torch.int32)
    keys = keys ^ to_device(salt, keys.device)
    return normals(keys, like[0, 0].numel()).view(len(keys), 1, *like.shape[2:])


def gaussian_noise(voxels: torch.Tensor, keys: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Additive noise, the same in all channels; sigma (n, 1, 1, 1, 1) in units of the normalised scan."""
    return voxels + sigma * field(keys, voxels, 0)


def rician_noise(voxels: torch.Tensor, low: torch.Tensor, keys: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Magnitude of a complex signal with noise in both parts; `low` is where the signal is zero."""
    real = voxels - low + sigma * field(keys, voxels, 0)
    return torch.hypot(real, sigma * field(keys, voxels, 1)) + low


def speckle(
    voxels: torch.Tensor, low: torch.Tensor, keys: torch.Tensor, sigma: torch.Tensor, grain: Operators
) -> torch.Tensor:
    """Signal above `low` times 1 + noise.

    Args:
        voxels: (n, C, D, H, W).
        low: where the signal is zero.
        keys: (n, 2) int32 of the noise.
        sigma: standard deviation of the noise, also after it is smoothed.
        grain: what smooths it, see `smooth.gaussian`.
    """
    noise = smoothed(field(keys, voxels, 2), None, grain)
    for axis, operator in enumerate(grain):
        if operator is not None:
            shape = [len(noise), 1, 1, 1, 1]
            shape[2 + axis] = -1
            noise = noise / operator.square().sum(2).sqrt().view(shape)
    return low + (voxels - low) * (1 + sigma * noise).clamp(min=0)
