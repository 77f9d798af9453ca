"""Weights of an encoder for another number of input channels."""

from collections.abc import Mapping

import torch
from torch import Tensor

from scanfoundry.backbones.registry import BackboneConfig, build

_NORM = "norm_in."  # Dual PatchNorm: over the voxels and channels of a patch, in front of the matrix `weight`


def with_channels(
    state: Mapping[str, Tensor], config: BackboneConfig, channels: int
) -> tuple[dict[str, Tensor], BackboneConfig]:
    """The weights of `config`'s encoder for scans of `channels` channels, and its new configuration.

    Equal channels give the features of one: what meets the input is repeated and divided by the repeats (of several,
    summed first). Dividing matters wherever no norm follows, as on STU-Net's shortcut. The norm of Dual PatchNorm is
    folded into the matrix behind it, and starts anew.
    """
    if channels == config.in_channels:
        return dict(state), config
    wanted = config.model_copy(update={"in_channels": channels})
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build(wanted).state_dict().items()}
    folded = _folded(state)
    adapted = {}
    for name, value in folded.items():
        if value.shape == shapes[name]:
            adapted[name] = value
        elif _NORM in name:
            adapted[name] = value[:1].expand(shapes[name]).clone()
        else:
            adapted[name] = repeat_channels(value, channels)
    return adapted, wanted


def repeat_channels(weight: Tensor, channels: int) -> Tensor:
    """Convolution weights (F, C, ...) for `channels` input channels: the sum over C, repeated and divided.

    The responses to C equal channels before and to `channels` equal ones after are the same.
    """
    repeats = [1, channels] + [1] * (weight.dim() - 2)
    return weight.sum(dim=1, keepdim=True).repeat(repeats) / channels


def _folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same function, with norms `norm_in` of weight 1 and bias 0."""
    folded = dict(state)
    for name in state:
        if not name.endswith(f"{_NORM}weight"):
            continue
        prefix = name.removesuffix(f"{_NORM}weight")
        weight, gain, shift = (state[prefix + part] for part in ("weight", f"{_NORM}weight", f"{_NORM}bias"))
        folded[f"{prefix}weight"] = weight * gain.view(weight.shape[1:])
        folded[f"{prefix}bias"] = state[f"{prefix}bias"] + weight.flatten(1) @ shift
        folded[f"{prefix}{_NORM}weight"] = torch.ones_like(gain)
        folded[f"{prefix}{_NORM}bias"] = torch.zeros_like(shift)
    return folded
