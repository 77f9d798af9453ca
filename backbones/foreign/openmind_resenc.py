"""ResEnc weights: nnssl's checkpoints, OpenMind's among them, and nnU-Net v2's residual encoder U-Nets."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scanfoundry.backbones.foreign import openmind
from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.weights import Taken, Weights, adapt_channels, chosen, configured, fill
from scanfoundry.backbones.layers.levels import Stride
from scanfoundry.backbones.resenc import ResEncConfig, ResEncEncoder
from scanfoundry.configs.errors import UserError

STEM = "stem.convs.0.conv.weight"
FIRST = "stages.{}.blocks.{}.conv1.conv.weight"
ARCHITECTURES = ("ResEncL", "NoSkipResEncL", "ResidualEncoderUNet")
DOUBLES = {".all_modules.0.": ".conv.", ".all_modules.1.": ".norm."}  # the original registers both under two names
Strides = tuple[Stride, ...]


def is_resenc(weights: Weights) -> bool:
    """Whether there are keys of a residual encoder."""
    return encoder_prefix(weights) is not None


def encoder_prefix(weights: Weights) -> str | None:
    """What stands before the names of the encoder's weights; None where there is no residual encoder."""
    return openmind.prefix_of(weights, FIRST.format(0, 0), STEM)


def load_encoder(
    weights: Weights, in_channels: int | None = None, strides: Strides | None = None
) -> tuple[ResEncEncoder, Report]:
    """The encoder alone.

    Args:
        in_channels: None keeps the file's; another number adapts the stem.
        strides: into each level but the first; None takes those of the plan, else those of the decoder, which
            undoes them; needed where neither says them.

    Raises:
        UserError: it is not a whole one of 3x3x3 kernels.
    """
    prefix = encoder_prefix(weights) or ""
    openmind.check_architecture(weights, ARCHITECTURES)
    config, notes = resenc_config(weights, prefix, in_channels, strides)
    taken, left = {}, {}
    for key, value in weights.tensors.items():
        name = key.removeprefix(prefix)
        if not key.startswith((f"{prefix}stem.", f"{prefix}stages.")):
            left[key] = "not of the encoder, or its second name: the encoder alone is read"
        elif is_double(weights, key):
            left[key] = "the same values under the original's second name"
        else:
            taken[name] = Taken(key, value)
    taken[STEM] = Taken(prefix + STEM, *adapt_channels(weights.tensors[prefix + STEM], config.in_channels))
    what = f"ResEnc of features {config.features} and blocks {config.blocks}, encoder"
    return fill(partial(ResEncEncoder, config), weights, taken, left, what, notes=notes, whole=True)


def is_double(weights: Weights, key: str) -> bool:
    """Whether the values of a key are also there under the name that is read; UserError where those are others."""
    for double, name in DOUBLES.items():
        original = key.replace(double, name)
        if double in key and original in weights.tensors:
            if not torch.equal(weights.tensors[key], weights.tensors[original]):
                raise UserError(f"{weights.path}: {key} and {original} differ, and are one; the file is damaged")
            return True
    return False


def resenc_config(
    weights: Weights, prefix: str, in_channels: int | None, strides: Strides | None
) -> tuple[ResEncConfig, tuple[str, ...]]:
    """Features and blocks from the shapes, strides as given or as in the file, and notes.

    Raises:
        UserError: the strides are unknown.
    """
    tensors = weights.tensors
    blocks = [_count(tensors, f"{prefix}{FIRST}", level) for level in range(_count(tensors, f"{prefix}{FIRST}"))]
    features = tuple(len(tensors[prefix + FIRST.format(level, 0)]) for level in range(len(blocks)))
    if tensors[prefix + STEM].dim() != 5:
        raise UserError(f"{weights.path} is a ResEnc for images alone; known are those of 3D convolutions")
    channels = tensors[prefix + STEM].shape[1]
    found, where = _strides(weights, len(features)) if strides is None else (strides, "")
    if found is None:
        raise UserError(
            f"{weights.path} is a ResEnc that does not say its strides: give strides=... , "
            "or put the model.json that came with it beside it"
        )
    fields = {"features": features, "blocks": tuple(blocks), "strides": found}
    config = configured(ResEncConfig, fields | {"in_channels": chosen("in_channels", in_channels, channels)})
    return config, (f"strides {config.strides} are {where}",) if where else ()


def count_levels(weights: Weights) -> int:
    """How many levels the encoder has."""
    return _count(weights.tensors, f"{encoder_prefix(weights) or ''}{FIRST}")


def _count(tensors: Mapping[str, Tensor], key: str, level: int | None = None) -> int:
    """How many levels there are under a pattern of keys, or blocks of one level."""
    number = 0
    while (key.format(number, 0) if level is None else key.format(level, number)) in tensors:
        number += 1
    return number


def _strides(weights: Weights, levels: int) -> tuple[Sequence[Any] | None, str]:
    """What the file says of its strides (not checked), and where."""
    if openmind.plan_entry(weights, "architecture_plans", "arch_class_name") in ARCHITECTURES[:2]:
        return ((2, 2, 2),) * (levels - 1), "those of the architecture that its plan names"
    entry = openmind.plan_entry(weights, "architecture_plans", "arch_kwargs", "strides")
    if isinstance(entry, list | tuple) and len(entry) == levels and openmind.triple(entry[0]) == (1, 1, 1):
        return tuple(openmind.triple(stride) or stride for stride in entry[1:]), "those of its plan"
    ups = [weights.tensors.get(f"decoder.transpconvs.{n}.weight") for n in reversed(range(levels - 1))]
    if ups and all(up is not None and up.dim() == 5 for up in ups):
        return tuple(tuple(up.shape[2:]) for up in ups if up is not None), "those that its decoder undoes"
    return None, ""
