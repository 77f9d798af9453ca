"""Vision transformers under timm's names: timm's own files and those of MAE (github.com/facebookresearch/mae).

The 2D patch embedding is taken as it is or resized by the pseudo-inverse of bicubic interpolation (FlexiViT,
Beyer et al. 2023, arXiv 2212.08013, section 3.4: exact where patches grow, least squares where they shrink). The 3D
one is it, resized to (H, W) of the 3D patch and spread evenly over D: a volume that is constant along depth gives
the token of its slice. Positions are not read: ours are MAE's fixed table, and the report says whether the file's
are the same.
"""

import re
from functools import partial
from math import isqrt

import torch
from torch import Tensor

from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.weights import Taken, Weights, adapt_channels, chosen, configured, fill, joined
from scanfoundry.backbones.layers.positions import sincos_positions
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.backbones.transfer.inflate import inflate_kernels
from scanfoundry.backbones.vit import WIDTH_DEPTH_HEADS, ViTConfig, ViTEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D

PATCHES = "patch_embed.proj.weight"
TRUNK = re.compile(
    r"cls_token|reg_token|norm\.(weight|bias)"
    r"|blocks\.\d+\.((norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)|ls[12]\.gamma)"
)
LEFT = {
    r"decoder_.*|mask_token": "MAE's decoder: the encoder alone is read",
    r"head\..*|fc_norm\..*": "a head for labels: the encoder alone is read",
}
SAME_TABLE = "MAE's fixed sin-cos table, which is computed here"
OTHER_TABLE = "positions that were learned, or of another table: ours are fixed, so features differ until fine-tuned"


def is_vit(weights: Weights) -> bool:
    """Whether the keys are those of timm's ViT."""
    return PATCHES in weights.tensors and "blocks.0.attn.qkv.weight" in weights.tensors


def load_encoder(
    weights: Weights,
    in_channels: int | None = None,
    patch_2d: tuple[int, int] | None = None,
    patch_3d: Size3D | None = None,
) -> tuple[ViTEncoder, Report]:
    """The encoder for images and volumes.

    Args:
        in_channels: None keeps the file's.
        patch_2d: (H, W); None keeps the file's.
        patch_3d: (D, H, W); None takes the file's H and W without resizing, and its H for D.

    Raises:
        UserError: the weights are not a plain ViT of a known size.
    """
    config = vit_config(weights, in_channels, patch_2d, patch_3d)
    taken, left = {}, {}
    for key, value in weights.tensors.items():
        if TRUNK.fullmatch(key):
            taken[key] = Taken(key, value)
        elif reason := next((why for pattern, why in LEFT.items() if re.fullmatch(pattern, key)), ""):
            left[key] = reason
        elif key == "pos_embed":
            left[key] = SAME_TABLE if is_mae_table(value) else OTHER_TABLE
        elif not key.startswith("patch_embed.proj."):
            raise UserError(f"{weights.path} is not a plain ViT: {key} has no place in ours; give another model")
    taken |= _patch_embeddings(weights, config)
    return fill(partial(ViTEncoder, config), weights, taken, left, f"ViT-{config.size} under timm's names")


def vit_config(
    weights: Weights, in_channels: int | None, patch_2d: tuple[int, int] | None, patch_3d: Size3D | None
) -> ViTConfig:
    """Size and options from the shapes, the rest as given.

    Raises:
        UserError: they are no ViT of ours.
    """
    tensors, path = weights.tensors, weights.path
    if tensors[PATCHES].dim() != 4:
        raise UserError(f"{path}: {PATCHES} is {tuple(tensors[PATCHES].shape)}, should be of a 2D ViT")
    dim, channels, height, width = tensors[PATCHES].shape
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    sizes = [size for size, (d, n, _) in WIDTH_DEPTH_HEADS.items() if (d, n) == (dim, depth)]
    if not sizes:
        known = ", ".join(f"{size} {d} and {n}" for size, (d, n, _) in WIDTH_DEPTH_HEADS.items())
        raise UserError(f"{path} is {dim} wide and has {depth} blocks; ViT has {known}")
    fields = {
        "size": sizes[0],
        "in_channels": chosen("in_channels", in_channels, channels),
        "patch_2d": patch_2d or (height, width),
        "patch_3d": patch_3d or (height, height, width),
        "registers": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        # the file's own scales replace the start value
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
    }
    return configured(ViTConfig, fields)


def _patch_embeddings(weights: Weights, config: ViTConfig) -> dict[str, Taken]:
    weight, channels_how = adapt_channels(weights.tensors[PATCHES], config.in_channels)
    flat, flat_how = resize_patch(weight, config.patch_2d)
    plane, plane_how = resize_patch(weight, config.patch_3d[1:])
    depth = config.patch_3d[0]
    solid, solid_how = inflate_kernels(plane, depth, "average"), f"spread evenly over depth {depth}"
    taken = {
        "patch_embed_2d.weight": Taken(PATCHES, flat, joined(channels_how, flat_how)),
        "patch_embed_3d.weight": Taken(PATCHES, solid, joined(channels_how, plane_how, solid_how)),
    }
    bias = "patch_embed.proj.bias"
    if bias in weights.tensors:
        taken |= {f"patch_embed_{n}d.bias": Taken(bias, weights.tensors[bias]) for n in (2, 3)}
    return taken


def resize_patch(weight: Tensor, patch: tuple[int, int]) -> tuple[Tensor, str]:
    """Patch weights (F, C, h, w) for patches of (H, W), and how ('' where that is their size)."""
    old = tuple(weight.shape[-2:])
    if old == tuple(patch):
        return weight, ""
    ensure_torchvision()
    from timm.layers import resample_patch_embed  # a heavy import that only this needs

    return resample_patch_embed(weight, list(patch)), f"patch {old} to {tuple(patch)} by pseudo-inverse resizing"


def image_size(weights: Weights) -> tuple[int, int] | None:
    """(H, W) of the images that the positions are for, where they are a square grid."""
    side = _side(weights.tensors["pos_embed"]) if "pos_embed" in weights.tensors else None
    height, width = weights.tensors[PATCHES].shape[-2:]
    return None if side is None else (side * height, side * width)


def is_mae_table(positions: Tensor) -> bool:
    """Whether positions (1, L, F) are MAE's, with or without a row of zeros for the class token."""
    side = _side(positions)
    if side is None:
        return False
    rows = positions[0].to(torch.float64)
    extra = len(rows) - side * side
    table = sincos_positions((1, side, side), rows.shape[1], True)
    return not rows[:extra].any() and torch.allclose(rows[extra:], table, rtol=0, atol=1e-4)


def _side(positions: Tensor) -> int | None:
    """The side of the grid that positions (1, L, F) are for."""
    if positions.dim() != 3:
        return None
    side = isqrt(positions.shape[1])
    return side if side and positions.shape[1] - side * side in (0, 1) else None
