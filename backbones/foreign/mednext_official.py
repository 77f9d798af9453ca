"""MedNeXt weights of its authors (github.com/MIC-DKFZ/MedNeXt): nnU-Net v1 files, or any state dict of these names."""

from collections.abc import Mapping
from functools import partial

from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.weights import Taken, Weights, adapt_channels, chosen, configured, fill
from scanfoundry.backbones.mednext import MedNeXt, MedNeXtConfig, MedNeXtEncoder
from scanfoundry.backbones.mednext.blocks import LEVELS
from scanfoundry.backbones.mednext.encoder import BLOCKS, RATIOS, WIDTH
from scanfoundry.configs.errors import UserError

STEM, FIRST, HEAD = "stem.weight", "enc_block_0.0.conv1.weight", "out_0.conv_out.weight"
ENCODER = ("stem.", "enc_block_", "down_", "bottleneck.")


def is_mednext(weights: Weights) -> bool:
    """Whether the keys are the official MedNeXt's."""
    return STEM in weights.tensors and FIRST in weights.tensors


def load_encoder(weights: Weights, in_channels: int | None = None) -> tuple[MedNeXtEncoder, Report]:
    """The contracting path alone.

    Args:
        in_channels: None keeps the file's; another number adapts the stem.

    Raises:
        UserError: the weights are not of size S, B, M or L with kernel 3 or 5.
    """
    config = mednext_config(weights, in_channels)
    rest = [key for key in weights.tensors if not key.startswith(ENCODER)]
    left = dict.fromkeys(rest, "decoder and heads: the encoder alone is read")
    what = f"MedNeXt {config.size} k{config.kernel}, encoder"
    return fill(partial(MedNeXtEncoder, config), weights, _taken(weights, left, config), left, what)


def load_whole(
    weights: Weights, in_channels: int | None = None, num_classes: int | None = None
) -> tuple[MedNeXt, Report]:
    """The network with its decoder and its five heads; other numbers of classes than the file's get fresh heads."""
    config = mednext_config(weights, in_channels)
    if HEAD not in weights.tensors:
        raise UserError(f"{weights.path} has no segmentation heads ({HEAD}); read its encoder alone")
    known = weights.tensors[HEAD].shape[1]  # a transposed convolution: (features, classes, 1, 1, 1)
    classes = chosen("num_classes", num_classes, known)
    heads = [key for key in weights.tensors if key.startswith("out_") and classes != known]
    reasons = dict.fromkeys(heads, f"heads of {known} classes, {classes} are asked for")
    what = f"MedNeXt {config.size} k{config.kernel}, whole, {classes} classes"
    make = partial(_make_whole, config, classes)
    return fill(make, weights, _taken(weights, reasons, config), reasons, what, reasons)


def _make_whole(config: MedNeXtConfig, classes: int) -> MedNeXt:
    return MedNeXt(MedNeXtEncoder(config), classes)


def mednext_config(weights: Weights, in_channels: int | None) -> MedNeXtConfig:
    """Size and kernel from the shapes.

    Raises:
        UserError: they are no MedNeXt of the paper.
    """
    tensors, path = weights.tensors, weights.path
    stages = [f"enc_block_{level}" for level in range(LEVELS - 1)] + ["bottleneck"]
    blocks = tuple(len({key.split(".")[1] for key in tensors if key.startswith(f"{s}.")}) for s in stages)
    expansions = [tensors.get(f"{stage}.0.conv2.weight") for stage in stages]
    ratios = tuple(0 if weight is None else weight.shape[0] // weight.shape[1] for weight in expansions)
    sizes = [size for size in RATIOS if (RATIOS[size][:LEVELS], BLOCKS[size][:LEVELS]) == (ratios, blocks)]
    width, channels = tensors[STEM].shape[:2]
    kernel = tensors[FIRST].shape[-1]
    if not sizes or width != WIDTH or kernel not in (3, 5) or tensors[FIRST].dim() != 5:
        raise UserError(
            f"{path} is a MedNeXt of width {width}, kernel {kernel}, blocks {blocks} and ratios {ratios}; "
            f"known are the sizes {', '.join(RATIOS)} of width {WIDTH} in 3D with kernel 3 or 5"
        )
    inputs = chosen("in_channels", in_channels, channels)
    return configured(MedNeXtConfig, {"size": sizes[0], "kernel": kernel, "in_channels": inputs})


def _taken(weights: Weights, left: Mapping[str, str], config: MedNeXtConfig) -> dict[str, Taken]:
    taken = {key: Taken(key, value) for key, value in weights.tensors.items() if key not in left}
    taken[STEM] = Taken(STEM, *adapt_channels(weights.tensors[STEM], config.in_channels))
    return taken
