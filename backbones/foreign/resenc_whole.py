"""Whole U-Nets on a residual encoder: checkpoints of nnU-Net v2, and of nnssl's masked pre-training."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from scanfoundry.backbones.foreign import nnunet_v2, openmind, openmind_resenc
from scanfoundry.backbones.foreign.openmind_resenc import STEM, Strides
from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.weights import Taken, Weights, adapt_channels, chosen, fill
from scanfoundry.backbones.models.description import HeadInfo
from scanfoundry.backbones.resenc import ResEncConfig, ResEncEncoder
from scanfoundry.backbones.resenc_decoder import ResEncUNet
from scanfoundry.configs.errors import UserError

CITATION = "Isensee et al. 2024, nnU-Net Revisited, arXiv 2404.09556"
HEADS, FINEST = "seg_layers.", "seg_layers.{}.weight"


def decoder_weights(weights: Weights) -> tuple[str, dict[str, Tensor]]:
    """What stands before the names of the decoder beside the encoder, and its weights by their names after that.

    There are none where the file holds no such decoder; weights under their second names are left out.
    """
    prefix = openmind_resenc.encoder_prefix(weights) or ""
    if not prefix.endswith("encoder."):
        return "", {}
    before = prefix.removesuffix("encoder.") + "decoder."
    names = {key.removeprefix(before): value for key, value in weights.tensors.items() if key.startswith(before)}
    return before, {n: v for n, v in names.items() if not n.startswith("encoder.") and ".all_modules." not in n}


def is_whole(weights: Weights) -> bool:
    """Whether a decoder of nnU-Net's layout with one convolution for each level lies beside the encoder."""
    _, found = decoder_weights(weights)
    levels = openmind_resenc.count_levels(weights) - 1
    layers = [f"transpconvs.{n}" for n in range(levels)]
    layers += [f"stages.{n}.convs.0.{layer}" for n in range(levels) for layer in ("conv", "norm")]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if {name for name in found if not name.startswith(HEADS)} != expected:
        return False
    fine = [found[f"stages.{n}.convs.0.conv.weight"].shape for n in range(levels)]
    return all(len(shape) == 5 and shape[1] == 2 * shape[0] for shape in fine)  # without skips it is half as many


def head_outputs(weights: Weights) -> int:
    """Channels of the finest logits; 0 where the file has no whole decoder, or no head on it."""
    if not is_whole(weights):
        return 0
    _, found = decoder_weights(weights)
    finest = found.get(FINEST.format(openmind_resenc.count_levels(weights) - 2))
    return 0 if finest is None else len(finest)


def head_info(weights: Weights) -> HeadInfo | None:
    """What the head predicts; None where there is none."""
    outputs = head_outputs(weights)
    return nnunet_v2.head(weights, outputs) if outputs else None


def load_whole(
    weights: Weights, in_channels: int | None = None, strides: Strides | None = None, num_classes: int | None = None
) -> tuple[ResEncUNet, Report]:
    """The network with its decoder, and with its head where the file has one.

    Args:
        weights: of which `is_whole`.
        in_channels: None keeps the file's; another number adapts the stem.
        strides: as of `openmind_resenc.load_encoder`.
        num_classes: another number than the file's gets a fresh head.

    Raises:
        UserError: the file has no such decoder, or it does not fit the encoder.
    """
    if not is_whole(weights):
        raise UserError(f"{weights.path} has no decoder as nnU-Net's; read its encoder alone")
    encoder_prefix = openmind_resenc.encoder_prefix(weights) or ""
    openmind.check_architecture(weights, openmind_resenc.ARCHITECTURES)
    config, notes = openmind_resenc.resenc_config(weights, encoder_prefix, in_channels, strides)
    before, decoder = decoder_weights(weights)
    known = head_outputs(weights)
    outputs = chosen("num_classes", num_classes, known or 1)
    other = known not in (0, outputs)
    taken, left, fresh = {}, {}, {}
    why = f"a head of {known} outputs, {outputs} are asked for" if other else "no head in the file"
    for key in weights.tensors:
        name = key.removeprefix(before) if key.startswith(before) else ""
        if openmind_resenc.is_double(weights, key):
            left[key] = "the same values under the original's second name"
        elif key.startswith((f"{encoder_prefix}stem.", f"{encoder_prefix}stages.")):
            taken[f"encoder.{key.removeprefix(encoder_prefix)}"] = Taken(key, weights.tensors[key])
        elif name.startswith("encoder."):
            _check_second_name(weights, key, encoder_prefix + name.removeprefix("encoder."))
            left[key] = "the encoder under its second name"
        elif name in decoder and not (other and name.startswith(HEADS)):
            taken[name] = Taken(key, weights.tensors[key])
        else:
            left[key] = why if name in decoder else "of no part of the U-Net"
    if other or not known:
        fresh = {f"seg_layers.{n}.{kind}": why for n in range(len(config.strides)) for kind in ("weight", "bias")}
    stem = weights.tensors[encoder_prefix + STEM]
    taken[f"encoder.{STEM}"] = Taken(encoder_prefix + STEM, *adapt_channels(stem, config.in_channels))
    what = f"ResEnc of features {config.features} and blocks {config.blocks}, whole, {outputs} outputs"
    network, report = fill(partial(_make, config, outputs), weights, taken, left, what, fresh, notes)
    if strange := sorted(report.missing.keys() - fresh.keys()):
        raise UserError(f"{weights.path} is no whole ResEnc: it has no {strange[0]}; give the original file")
    return network, report


def _make(config: ResEncConfig, outputs: int) -> ResEncUNet:
    return ResEncUNet(ResEncEncoder(config), outputs)


def _check_second_name(weights: Weights, key: str, original: str) -> None:
    """UserError where a weight of the encoder has other values under its name within the decoder."""
    tensors = weights.tensors
    if original in tensors and not torch.equal(tensors[key], tensors[original]):
        raise UserError(f"{weights.path}: {key} and {original} differ, and are one; the file is damaged")


def facts(weights: Weights) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of ReleaseInfo, and notes."""
    fields, notes = openmind.facts(weights, CITATION)
    head = head_info(weights)
    return fields | nnunet_v2.facts(weights) | ({} if head is None else {"head": head}), notes
