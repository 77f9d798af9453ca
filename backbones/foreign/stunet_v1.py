"""STU-Net weights of its authors (github.com/uni-medical/STU-Net): nnU-Net v1 `.model` files, or any state dict
under the same names.

The file does not say its strides. Those of the released weights are (2, 2, 2) four times, then (1, 1, 2).
"""

import re
from collections.abc import Mapping
from functools import partial

from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.weights import Taken, Weights, adapt_channels, chosen, configured, fill
from scanfoundry.backbones.layers.levels import Stride
from scanfoundry.backbones.stunet import WIDTHS_AND_DEPTHS, STUNet, STUNetConfig, STUNetEncoder
from scanfoundry.configs.errors import UserError

Strides = tuple[Stride, Stride, Stride, Stride, Stride]
RELEASED_STRIDES: Strides = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 2))
STEM = ("conv_blocks_context.0.0.conv1.weight", "conv_blocks_context.0.0.conv3.weight")
HEAD = "seg_outputs.4.weight"
PARTS = re.compile(r"(conv_blocks_context|conv_blocks_localization|upsample_layers|seg_outputs)\.\d+\.")


def is_stunet(weights: Weights) -> bool:
    """Whether the keys are STU-Net's."""
    return STEM[0] in weights.tensors


def load_encoder(
    weights: Weights, in_channels: int | None = None, strides: Strides | None = None
) -> tuple[STUNetEncoder, Report]:
    """The contracting path alone.

    Args:
        in_channels: None keeps the file's; another number adapts both convolutions that see the input.
        strides: None takes the released ones; needed where the file is an encoder alone, which may be anyone's.

    Raises:
        UserError: the weights are not a whole one of size S, B, L or H.
    """
    config = stunet_config(weights, in_channels, strides)
    rest = [key for key in weights.tensors if not key.startswith("conv_blocks_context.")]
    left = dict.fromkeys(rest, "decoder and heads: the encoder alone is read")
    make, notes = partial(STUNetEncoder, config), _assumed(strides)
    return fill(make, weights, _taken(weights, left, config), left, f"STU-Net {config.size}, encoder", notes=notes)


def load_whole(
    weights: Weights, in_channels: int | None = None, strides: Strides | None = None, num_classes: int | None = None
) -> tuple[STUNet, Report]:
    """The network with its decoder and its five heads; other numbers of classes than the file's get fresh heads."""
    config = stunet_config(weights, in_channels, strides)
    if HEAD not in weights.tensors:
        raise UserError(f"{weights.path} has no segmentation heads ({HEAD}); read its encoder alone")
    known = len(weights.tensors[HEAD])
    classes = chosen("num_classes", num_classes, known)
    heads = [key for key in weights.tensors if key.startswith("seg_outputs.") and classes != known]
    # the same keys are left in the file and fresh in the model
    reasons = dict.fromkeys(heads, f"heads of {known} classes, {classes} are asked for")
    what = f"STU-Net {config.size}, whole, {classes} classes"
    make, taken = partial(_make_whole, config, classes), _taken(weights, reasons, config)
    return fill(make, weights, taken, reasons, what, reasons, _assumed(strides))


def _assumed(strides: Strides | None) -> tuple[str, ...]:
    if strides is not None:
        return ()
    return (f"the strides are not in the file: taken are those of the authors' weights, {RELEASED_STRIDES}",)


def _make_whole(config: STUNetConfig, classes: int) -> STUNet:
    return STUNet(STUNetEncoder(config), classes)


def stunet_config(weights: Weights, in_channels: int | None, strides: Strides | None) -> STUNetConfig:
    """Size from the shapes, the rest as given.

    Raises:
        UserError: they are no STU-Net's.
    """
    tensors, path = weights.tensors, weights.path
    if strange := sorted(key for key in tensors if not PARTS.match(key)):
        raise UserError(f"{path} is not a plain STU-Net: it has {strange[0]}; give the original network's weights")
    if strides is None and HEAD not in tensors:
        raise UserError(
            f"{path} is a STU-Net encoder that does not say its strides: give strides=... , "
            "or put the model.json that came with it beside it"
        )
    width, channels = tensors[STEM[0]].shape[:2]
    depth = len({key.split(".")[2] for key in tensors if key.startswith("conv_blocks_context.0.")})
    sizes = [size for size, known in WIDTHS_AND_DEPTHS.items() if known == (width, depth)]
    if not sizes:
        known = ", ".join(f"{size} {w} and {d}" for size, (w, d) in WIDTHS_AND_DEPTHS.items())
        raise UserError(f"{path} has {width} channels and {depth} blocks per stage; STU-Net has {known}")
    inputs = chosen("in_channels", in_channels, channels)
    return configured(STUNetConfig, {"size": sizes[0], "in_channels": inputs, "strides": strides or RELEASED_STRIDES})


def _taken(weights: Weights, left: Mapping[str, str], config: STUNetConfig) -> dict[str, Taken]:
    taken = {key: Taken(key, value) for key, value in weights.tensors.items() if key not in left}
    for key in STEM:  # conv3 has no norm behind it: without the division it would grow with the channels
        if key in taken:
            taken[key] = Taken(key, *adapt_channels(weights.tensors[key], config.in_channels))
    return taken
