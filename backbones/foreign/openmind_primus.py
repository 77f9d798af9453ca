"""Primus weights of nnssl's checkpoints, OpenMind's among them.

nnssl flattens the patches of an array (D, H, W) with H before D, but gives positions as if D were before H, in the
table and in the rotations. Here D is before H in both: the table's axes are swapped, and so are those of the pairs that
the rotations turn, in queries and keys. The function is that of the pre-training.
"""

import re
from functools import partial
from typing import Any

from torch import Tensor

from scanfoundry.backbones.foreign import openmind
from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.weights import Taken, Weights, adapt_channels, chosen, configured, fill, widened
from scanfoundry.backbones.primus import WIDTH_DEPTH_HEADS, PrimusConfig, PrimusEncoder
from scanfoundry.configs.errors import UserError

PATCHES, TABLE = "down_projection.proj.weight", "eva.pos_embed"
ARCHITECTURES = ("PrimusS", "PrimusB", "PrimusM", "PrimusL")
TURNED = re.compile(r"blocks\.\d+\.attn\.(q|k)_proj\.(weight|bias)")
CITATION = "Wald et al. 2025, Primus, arXiv 2503.01835"
SWAPPED = "axes D and H swapped, which nnssl flattens in the other order"


def is_primus(weights: Weights) -> bool:
    """Whether there are keys of a Primus."""
    return _prefix(weights) is not None


def _prefix(weights: Weights) -> str | None:
    return openmind.prefix_of(weights, "eva.blocks.0.attn.q_proj.weight", PATCHES, TABLE)


def load_encoder(weights: Weights, in_channels: int | None = None) -> tuple[PrimusEncoder, Report]:
    """The encoder alone.

    Args:
        in_channels: None keeps the file's; another number adapts the patch embedding.

    Raises:
        UserError: it is not a whole one of size S, B, M or L.
    """
    prefix = _prefix(weights) or ""
    openmind.check_architecture(weights, ARCHITECTURES)
    config = primus_config(weights, prefix, in_channels)
    heads = WIDTH_DEPTH_HEADS[config.size][2]
    taken, left = {}, {}
    for key, value in weights.tensors.items():
        name = key.removeprefix(prefix)
        if key.startswith(f"{prefix}eva.rope."):
            left[key] = "rotations, which are computed here"
        elif key.startswith(f"{prefix}eva."):
            taken[name.removeprefix("eva.")] = _swapped(key, name.removeprefix("eva."), value, config, heads)
        elif not key.startswith(f"{prefix}down_projection."):
            left[key] = "not of the encoder: the encoder alone is read"
    patches = adapt_channels(weights.tensors[prefix + PATCHES], config.in_channels)
    taken["patch_embed.weight"] = Taken(prefix + PATCHES, *patches)
    bias = f"{prefix}down_projection.proj.bias"
    if bias in weights.tensors:
        taken["patch_embed.bias"] = Taken(bias, weights.tensors[bias])
    return fill(partial(PrimusEncoder, config), weights, taken, left, f"Primus-{config.size}, encoder", whole=True)


def primus_config(weights: Weights, prefix: str, in_channels: int | None) -> PrimusConfig:
    """Size, patch and grid from the shapes.

    Raises:
        UserError: they are no Primus of the paper.
    """
    tensors, path = weights.tensors, weights.path
    patches, table = tensors[prefix + PATCHES], tensors[prefix + TABLE]
    if patches.dim() != 5 or table.dim() != 3:
        raise UserError(
            f"{path}: {PATCHES} is {tuple(patches.shape)} and {TABLE} {tuple(table.shape)}; give a 3D Primus"
        )
    dim, channels, *patch = patches.shape
    start = f"{prefix}eva.blocks."
    depth = len({key.removeprefix(start).split(".")[0] for key in tensors if key.startswith(start)})
    sizes = [size for size, (d, n, _) in WIDTH_DEPTH_HEADS.items() if (d, n) == (dim, depth)]
    if not sizes:
        known = ", ".join(f"{size} {d} and {n}" for size, (d, n, _) in WIDTH_DEPTH_HEADS.items())
        raise UserError(f"{path} is {dim} wide and has {depth} blocks; Primus has {known}")
    side = round(table.shape[1] ** (1 / 3))
    if side**3 != table.shape[1]:
        raise UserError(f"{path} has positions for {table.shape[1]} patches, which are no cube; known are cubic crops")
    fields = {"size": sizes[0], "in_channels": chosen("in_channels", in_channels, channels)}
    return configured(PrimusConfig, fields | {"patch": tuple(patch), "grid": (side, side, side)})


def _swapped(key: str, name: str, value: Tensor, config: PrimusConfig, heads: int) -> Taken:
    """A value of the trunk with D and H in our order, where it depends on them."""
    if name == "pos_embed":
        wide, cast = widened(value)
        table = wide.unflatten(1, config.grid).transpose(1, 2).flatten(1, 3)
        return Taken(key, table, "; ".join(filter(None, (cast, SWAPPED))))
    if not TURNED.fullmatch(name) or len(value) % (3 * heads):
        return Taken(key, value)
    thirds = value.unflatten(0, (heads, 3, -1))  # of each head: the pairs of one axis
    return Taken(key, thirds[:, [1, 0, 2]].flatten(0, 2), SWAPPED)


def facts(weights: Weights) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of ReleaseInfo, and notes."""
    return openmind.facts(weights, CITATION)
