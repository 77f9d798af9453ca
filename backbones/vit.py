"""Vision transformer of timm's blocks with one patch embedding for 2D, one for 3D, and a shared trunk.

Dosovitskiy et al. 2021 for the trunk, He et al. 2022 (MAE) for positions and initialisation. Options: Dual PatchNorm
(Kumar et al. 2023, arXiv 2302.01327), registers (Darcet et al. 2024, arXiv 2309.16588), LayerScale (Touvron et al.
2021, arXiv 2103.17239). The names of the trunk's parameters (`cls_token`, `reg_token`, `blocks.*`, `norm.*`) are
timm's.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scanfoundry.backbones.layers.patch_embedding import PatchEmbedding
from scanfoundry.backbones.layers.positions import positions_like
from scanfoundry.backbones.protocol import EncoderConfig, Family, TokenEncoder, masked_mean
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.geometry import Size3D

WIDTH_DEPTH_HEADS = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
Positive = Annotated[int, Field(gt=0)]
INIT_STD = 0.02


class ViTConfig(EncoderConfig):
    """Size and patches of a ViT; a patch is (H, W) in 2D and (D, H, W) in 3D, in voxels."""

    family: ClassVar[Family] = "transformer"
    not_of_weights: ClassVar[frozenset[str]] = frozenset({"drop_path", "layer_scale"})  # a scale only starts there
    name: Literal["vit"] = "vit"
    size: Literal["Ti", "S", "B", "L", "H"] = "B"
    in_channels: Positive = 1
    patch_2d: tuple[Positive, Positive] = (16, 16)
    patch_3d: tuple[Positive, Positive, Positive] = (8, 8, 8)
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the last block; rises linearly from 0
    dual_patch_norm: bool = False  # LayerNorm of the voxels of a patch, and of its token
    registers: Annotated[int, Field(ge=0)] = 0  # learned tokens without position, behind the class token
    layer_scale: Annotated[float, Field(gt=0)] | None = None  # each block's branches start times this; None: no scale

    def build(self) -> "ViTEncoder":
        """An encoder with fresh weights."""
        return ViTEncoder(self)


def transformer_blocks(
    dim: int, depth: int, heads: int, drop_path: float = 0.0, layer_scale: float | None = None
) -> nn.Sequential:
    """timm's pre-norm blocks (qkv bias, LayerNorm eps 1e-6) with MAE's initialisation."""
    ensure_torchvision()
    from timm.models.vision_transformer import Block  # a heavy import that only a ViT needs

    rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
    norm = partial(nn.LayerNorm, eps=1e-6)
    blocks = nn.Sequential(
        *(
            Block(dim, heads, qkv_bias=True, init_values=layer_scale, drop_path=rate, norm_layer=norm)  # type: ignore[arg-type]
            for rate in rates
        )
    )
    blocks.apply(init_linear)
    return blocks


def init_linear(module: nn.Module) -> None:
    """Xavier uniform weights and zero biases for linear layers (MAE)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class ViTEncoder(TokenEncoder):
    """Patch tokens, a class token and registers through the trunk; one feature level at the patch grid."""

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, depth, heads = WIDTH_DEPTH_HEADS[config.size]
        self.config = config
        self.in_channels = config.in_channels
        self.feature_channels = (dim,)
        self.pooled_dim = dim
        self.patch_embed_2d = PatchEmbedding(config.in_channels, dim, config.patch_2d, config.dual_patch_norm)
        self.patch_embed_3d = PatchEmbedding(config.in_channels, dim, config.patch_3d, config.dual_patch_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        self.blocks = transformer_blocks(dim, depth, heads, config.drop_path, config.layer_scale)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.normal_(self.cls_token, std=INIT_STD)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=INIT_STD)

    def patch(self, is_2d: bool) -> Size3D:
        """The patch (D, H, W) in voxels."""
        return (1, *self.config.patch_2d) if is_2d else self.config.patch_3d

    @property
    def extra_tokens(self) -> int:
        """Tokens in front of the patches' in `forward_tokens`: the class token, then the registers."""
        return 1 + self.config.registers

    def forward_tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, extra_tokens + n, F) after the last norm, of the scans (B, C, D, H, W).

        The patches left out have no influence on the result. The first token is the class token.

        Args:
            keep: (B, n) int64 indices of the patches to encode, in d, h, w order (w fastest); None takes all.
        """
        extra = self.cls_token if self.reg_token is None else torch.cat((self.cls_token, self.reg_token), dim=1)
        tokens = torch.cat((extra.expand(x.shape[0], -1, -1), self.embed(x, keep)), dim=1)  # extra ones have position 0
        return self.norm(self.blocks(tokens))

    def embed(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Patch embeddings with their positions: (B, C, D, H, W) -> (B, n, F), of all patches or of keep (B, n)."""
        shape = (x.shape[2], x.shape[3], x.shape[4])
        grid, is_2d = self.grid(shape), shape[0] == 1
        tokens = self.patch_embed_2d(x, keep) if is_2d else self.patch_embed_3d(x, keep)
        places = positions_like(grid, self.pooled_dim, is_2d, tokens)
        return tokens + (places if keep is None else places[keep])

    def forward(self, x: Tensor) -> list[Tensor]:
        """One feature map (B, F, d, h, w) of the scans (B, C, D, H, W)."""
        tokens = self.forward_tokens(x)[:, self.extra_tokens :]
        grid = self.grid((x.shape[2], x.shape[3], x.shape[4]))
        return [tokens.transpose(1, 2).reshape(x.shape[0], self.pooled_dim, *grid)]

    def pooled(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean of the patch tokens (B, F), which is what MAE fine-tunes on; the class token has no task.

        Args:
            valid: (B, 1, D, H, W) bool; patches count by their share of valid voxels.
        """
        return masked_mean(self.forward(x)[0], valid)

    def block_modules(self) -> Iterator[nn.Module]:
        """The transformer blocks."""
        return iter(self.blocks)

    def patch_embeddings(self) -> Iterator[nn.Module]:
        """The embedding of images and that of volumes."""
        return iter((self.patch_embed_2d, self.patch_embed_3d))
