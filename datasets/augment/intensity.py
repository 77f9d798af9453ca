"""Intensities: batched functions of voxels (n, C, D, H, W); parameters (n, 1, 1, 1, 1) unless a line says otherwise.

`low` and `high` are the sample's darkest and brightest value. Nothing here looks at `valid` but for means; the
pipeline puts padding back.
"""

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray

from scanfoundry.datasets.augment.transforms import BIAS_TERMS
from scanfoundry.datasets.device import to_device


def window(voxels: torch.Tensor, width: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """A CT in [-1, 1] seen through `width` of its window, moved by `shift` (-1 to 1) of the room left inside it."""
    return ((voxels - shift * (1 - width)) / width).clamp(-1, 1)


def gamma(
    voxels: torch.Tensor, low: torch.Tensor, high: torch.Tensor, exponent: torch.Tensor, least: float = 0.0
) -> torch.Tensor:
    """Power law that keeps `low` and `high` where they are.

    Args:
        voxels: (n, C, D, H, W).
        low, high: the sample's darkest and brightest value.
        exponent: 1 changes nothing.
        least: a smaller distance of `low` and `high` counts as this one.
    """
    extent = (high - low).clamp(min=least)
    unit = (voxels - low).clamp(min=0) / torch.where(extent > 0, extent, 1.0)
    return low + extent * unit**exponent


def contrast(voxels: torch.Tensor, valid: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor:
    """Distances to the mean of the valid voxels times `factor`."""
    centre = mean(voxels, valid)
    return centre + factor * (voxels - centre)


def brightness(voxels: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """A constant added."""
    return voxels + shift


def mean(voxels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """(n, 1, 1, 1, 1): mean of a sample's valid voxels over all channels; 0 where there is none."""
    if valid is None:
        return voxels.mean((1, 2, 3, 4), keepdim=True)
    total = torch.where(valid, voxels, 0.0).sum((1, 2, 3, 4), keepdim=True)
    return total / (valid.sum((1, 2, 3, 4), keepdim=True) * voxels.shape[1]).clamp(min=1)


def invert(voxels: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Bright becomes dark within [low, high]."""
    return low + high - voxels


def bias_field(voxels: torch.Tensor, low: torch.Tensor, values: NDArray[np.float64]) -> torch.Tensor:
    """Signal above `low` times a smooth gain.

    Args:
        voxels: (n, C, D, H, W).
        low: where the signal is zero.
        values: (n, 1 + terms): strength, weights of Legendre polynomials.
    """
    return low + (voxels - low) * bias(values, voxels)


def bias(values: NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    """The gain (n, 1, D, H, W): the exponential of polynomials scaled so that their largest value is the strength."""
    bases = [_basis(length, like) for length in like.shape[2:]]
    weights = np.zeros((len(values), 4, 4, 4))
    for number, term in enumerate(BIAS_TERMS):
        weights[(slice(None), *term)] = values[:, 1 + number]
    strength = to_device(values[:, 0], like.device, like.dtype).view(-1, 1, 1, 1, 1)
    factors = to_device(weights, like.device, like.dtype)
    polynomial = torch.einsum("nabc,da,hb,wc->ndhw", factors, *bases)[:, None]
    largest = polynomial.abs().amax((2, 3, 4), keepdim=True).clamp(min=1e-6)
    return (polynomial * (strength / largest)).exp_()


def _basis(length: int, like: torch.Tensor) -> torch.Tensor:
    """Legendre polynomials of degree 0 to 3 on [-1, 1]: (length, 4); along an axis of one voxel only the constant."""
    table = np.eye(1, 4) if length == 1 else legvander(np.linspace(-1, 1, length), 3)
    return to_device(table, like.device, like.dtype)


def erase(
    voxels: torch.Tensor, valid: torch.Tensor | None, values: NDArray[np.float64], max_holes: int
) -> torch.Tensor:
    """Boxes filled with the sample's mean.

    Args:
        voxels: (n, C, D, H, W).
        valid: (n, 1, D, H, W) of the voxels that count for the mean; None: all.
        values: (n, 1 + 6 * max_holes): how many, then each one's sides and place, as shares.
        max_holes: that there are numbers for.
    """
    filled = voxels.clone()
    centres = mean(voxels, valid)
    shape = np.array(voxels.shape[2:])
    boxes = values[:, 1:].reshape(-1, max_holes, 2, 3)
    lengths = np.maximum(np.round(boxes[:, :, 0] * shape), 1).astype(int)
    firsts = (boxes[:, :, 1] * (shape - lengths + 1)).astype(int)
    for number, count in enumerate(values[:, 0].astype(int)):
        for first, length in zip(firsts[number, :count], lengths[number, :count], strict=True):
            d, h, w = (slice(a, a + n) for a, n in zip(first, length, strict=True))
            filled[number, :, d, h, w] = centres[number, 0]
    return filled
