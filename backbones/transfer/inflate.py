"""Convolution weights from 2D to 3D and back.

Kernels are (..., kh, kw) or (..., kd, kh, kw); what comes before (output and input channels, in either order) does
not matter. Exact means: the same outputs, to rounding.

2D to 3D
- centre: zeros except for the middle slice. Exact on every slice of a volume (zero padding, odd depth), so also on
  a scan of depth 1.
- average: the kernel / kd in every slice (I3D, Carreira & Zisserman 2017). Exact on volumes that are constant along
  depth, away from their ends in depth, at any depth stride; for transposed convolutions only at depth stride 1.
- fourier: the kernel as middle slice, turned to each of the given orientations, averaged (`rotation.py`). With one
  orientation of zero angles it is `centre`. The response to a constant volume is that to a constant image.

3D to 2D
- centre: the middle slice. Exact on scans of depth 1 (zero padding), and undoes `centre`.
- sum: the sum over depth. Exact on volumes that are constant along depth, away from their ends; undoes `average`
  and `centre`.
- fourier: turned back from each orientation, middle slices averaged: the transpose of the 2D to 3D operator, which
  undoes it where there is one orientation. Cross-D Conv takes the middle slice of a turned 3D kernel, per image.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.backbones.transfer.rotation import rotate_kernels
from scanfoundry.configs.errors import UserError

Inflation = Literal["centre", "average", "fourier"]
Flattening = Literal["centre", "sum", "fourier"]
# Angles of `rotate_kernels` that bring the plane (H, W) onto (H, W), (D, H) and (D, W).
ORTHOGONAL = ((0.0, 0.0, 0.0), (0.0, math.pi / 2, 0.0), (0.0, 0.0, math.pi / 2))


def inflate_kernels(
    kernels: Tensor, depth: int, how: Inflation = "centre", orientations: Tensor | None = None
) -> Tensor:
    """2D kernels (..., kh, kw) as 3D ones (..., depth, kh, kw).

    Args:
        orientations: (n, 3) angles for "fourier", by default the three orthogonal planes; gradients reach them.

    Raises:
        UserError: the method cannot make kernels of this shape.
    """
    if how == "average":
        return (kernels / depth).unsqueeze(-3).repeat_interleave(depth, dim=-3)
    if depth % 2 == 0:
        raise UserError(f"a kernel of depth {depth} has no middle slice for {how!r}; take an odd depth or 'average'")
    middle = F.pad(kernels.unsqueeze(-3), (0, 0, 0, 0, depth // 2, depth // 2))
    if how == "centre":
        return middle
    turned = [rotate_kernels(middle, angles) for angles in _orientations(orientations)]
    return torch.stack(turned).mean(dim=0)


def flatten_kernels(kernels: Tensor, how: Flattening = "centre", orientations: Tensor | None = None) -> Tensor:
    """3D kernels (..., kd, kh, kw) as 2D ones (..., kh, kw); arguments and errors as in `inflate_kernels`."""
    if how == "sum":
        return kernels.sum(dim=-3)
    depth = kernels.shape[-3]
    if depth % 2 == 0:
        raise UserError(f"a kernel of depth {depth} has no middle slice for {how!r}; take 'sum'")
    if how == "fourier":
        turned = [rotate_kernels(kernels, angles, inverse=True) for angles in _orientations(orientations)]
        kernels = torch.stack(turned).mean(dim=0)
    return kernels.select(-3, depth // 2)


def _orientations(given: Tensor | None) -> Tensor:
    return torch.tensor(ORTHOGONAL, dtype=torch.float64) if given is None else given


def inflate_state(
    state: Mapping[str, Tensor],
    how: Inflation = "centre",
    orientations: Tensor | None = None,
    like: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A 2D network's weights for the 3D network of the same layout, and for each key what was done.

    Every tensor of four axes is taken for convolution weights and gets the depth of its height. With `like` (the
    3D network's own weights), what has five axes there is inflated to the depth it has there, the rest is kept, and
    a key or shape that does not fit raises UserError.
    """
    converted, report = {}, {}
    for key, value in state.items():
        if like is not None and key not in like:
            raise UserError(f"{key} is not in the 3D network; give the weights of the same layout")
        target = None if like is None else tuple(like[key].shape)
        if value.dim() == 4 and (target is None or len(target) == 5):
            depth = value.shape[-2] if target is None else target[-3]
            converted[key] = inflate_kernels(value, depth, how, orientations).contiguous()
            report[key] = f"inflated by {how}: {tuple(value.shape)} -> {tuple(converted[key].shape)}"
        else:
            converted[key], report[key] = value, "kept"
        if target is not None and tuple(converted[key].shape) != target:
            raise UserError(f"{key} is {tuple(value.shape)}, which does not become the {target} of the 3D network")
    if missing := sorted((like or {}).keys() - state.keys()):
        raise UserError(f"{missing[0]} of the 3D network is not in the 2D one; give the weights of the same layout")
    return converted, report


def flatten_state(
    state: Mapping[str, Tensor], how: Flattening = "centre", orientations: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A 3D network's weights for the 2D network of the same layout, and for each key what was done.

    Every tensor of five axes is taken for convolution weights.
    """
    converted, report = {}, {}
    for key, value in state.items():
        converted[key], report[key] = value, "kept"
        if value.dim() == 5:
            converted[key] = flatten_kernels(value, how, orientations).contiguous()
            report[key] = f"flattened by {how}: {tuple(value.shape)} -> {tuple(converted[key].shape)}"
    return converted, report
