"""Primus (Wald et al. 2025, arXiv 2503.01835): a 3D vision transformer of EVA-02's blocks on small patches.

Every token attends to every other: 8^3 patches, learned absolute positions and axial rotary ones (Su et al. 2021,
arXiv 2104.09864, a third of each head for each axis), SwiGLU with a norm inside, a norm on the attention's output and
LayerScale, on timm's blocks. There is no class token.

A scan of depth 1 is encoded as the volume that repeats it through one patch: the same weights, one patch deep.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from math import prod, sqrt
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scanfoundry.backbones.layers.patch_embedding import PatchEmbedding, patch_voxels
from scanfoundry.backbones.protocol import EncoderConfig, Family, GridBlocks, TokenEncoder
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.geometry import Size3D

WIDTH_DEPTH_HEADS = {"S": (396, 12, 6), "B": (792, 12, 12), "M": (864, 16, 12), "L": (1056, 24, 16)}
MLP_RATIO, LAYER_SCALE, INIT_STD = 8 / 3, 0.1, 0.02
TEMPERATURE = 10000.0
Positive = Annotated[int, Field(gt=0)]


class PrimusConfig(EncoderConfig):
    """Size, patch and the grid that the learned positions are for; on another grid they are interpolated."""

    family: ClassVar[Family] = "transformer"
    not_of_weights: ClassVar[frozenset[str]] = frozenset({"drop_path"})
    name: Literal["primus"] = "primus"
    size: Literal["S", "B", "M", "L"] = "M"
    in_channels: Positive = 1
    patch: tuple[Positive, Positive, Positive] = (8, 8, 8)  # (D, H, W) in voxels
    grid: tuple[Positive, Positive, Positive] = (20, 20, 20)  # patches (d, h, w): crops of 160^3
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the last block; rises linearly from 0

    def build(self) -> "PrimusEncoder":
        """An encoder with fresh weights."""
        return PrimusEncoder(self)


def eva_blocks(dim: int, depth: int, heads: int, drop_path: float) -> nn.ModuleList:
    """timm's EVA-02 blocks (LayerNorm eps 1e-5) with their initialisation: residual branches shrink with depth."""
    ensure_torchvision()
    from timm.models.eva import EvaBlock  # a heavy import that only this needs

    rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
    make = partial(
        EvaBlock, dim, heads, qkv_fused=False, mlp_ratio=MLP_RATIO, swiglu_mlp=True, scale_mlp=True,
        scale_attn_inner=True, num_prefix_tokens=0, init_values=LAYER_SCALE, norm_layer=nn.LayerNorm,
    )  # fmt: skip
    blocks = nn.ModuleList(make(drop_path=rate) for rate in rates)
    for number, block in enumerate(blocks, start=1):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                last = name in ("attn.proj", "mlp.fc2")
                nn.init.trunc_normal_(module.weight, std=INIT_STD / (sqrt(2 * number) if last else 1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return blocks


@lru_cache(maxsize=64)
def rotary_table(grid: Size3D, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sines and cosines (d*h*w, 2 * dim) that timm's attention turns heads of `dim` features by, rows w fastest.

    The angle of pair i of an axis's dim / 6 pairs is position / 10000^(6 i / dim).
    """
    bands = TEMPERATURE ** -(torch.arange(dim // 6, dtype=torch.float64) / (dim // 6))
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))  # (d*h*w, 3)
    angles = (places[:, :, None] * bands).flatten(1).repeat_interleave(2, dim=1)
    with torch.inference_mode(False):  # a table first asked for in a prediction serves training too
        return torch.cat((angles.sin(), angles.cos()), dim=1).to(device, dtype)


def positions_on(grid: Size3D, table: Tensor, own: Size3D) -> Tensor:
    """Positions (1, d*h*w, F) for a grid, from those (1, L, F) of the grid `own`: trilinear where it is another."""
    if grid == own:
        return table
    volume = table.reshape(1, *own, -1).movedim(-1, 1)
    return F.interpolate(volume, size=grid, mode="trilinear", align_corners=False).flatten(2).mT


def attended(blocks: nn.ModuleList, tokens: Tensor, grid: Size3D, heads: int, keep: Tensor | None = None) -> Tensor:
    """Tokens (B, n, F) through the blocks, turned by their places in the grid: all, or keep (B, n)."""
    wide = torch.promote_types(tokens.dtype, torch.float32)  # angles of bfloat16 would be off by degrees
    rope = rotary_table(grid, tokens.shape[-1] // heads, wide, tokens.device)
    if keep is not None:
        rope = rope[keep].unsqueeze(1)  # (B, 1, n, ...): the same in every head
    for block in blocks:
        tokens = block(tokens, rope=rope)
    return tokens


class VolumeEmbedding(PatchEmbedding):
    """Patches of a volume to tokens; a scan of depth 1 counts as repeated through the patch."""

    def __init__(self, channels: int, dim: int, patch: Size3D) -> None:
        super().__init__(channels, dim, patch, dual_norm=False)
        nn.init.kaiming_normal_(self.weight, a=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, n, dim) of the scans (B, C, D, H, W), of all patches or those of keep (B, n)."""
        if x.shape[2] != 1:
            return super().forward(x, keep)
        voxels = patch_voxels(x, (1, self.patch[1], self.patch[2]), keep)
        return F.linear(voxels, self.weight.sum(dim=2).flatten(1), self.bias)


class PrimusEncoder(TokenEncoder):
    """Patch tokens through the blocks; one feature level at the patch grid."""

    config: PrimusConfig

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        dim, depth, self.heads = WIDTH_DEPTH_HEADS[config.size]
        self.config = config
        self.in_channels = config.in_channels
        self.feature_channels = (dim,)
        self.pooled_dim = dim
        self.patch_embed = VolumeEmbedding(config.in_channels, dim, config.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, prod(config.grid), dim))
        self.blocks = eva_blocks(dim, depth, self.heads, config.drop_path)
        self.norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)

    def patch(self, is_2d: bool) -> Size3D:
        """The patch (D, H, W) in voxels of the scan."""
        return (1, *self.config.patch[1:]) if is_2d else self.config.patch

    @property
    def extra_tokens(self) -> int:
        """There is no class token."""
        return 0

    def positions(self, grid: Size3D) -> Tensor:
        """The learned positions (1, d*h*w, F) for a grid, trilinearly interpolated where it is not theirs."""
        return positions_on(grid, self.pos_embed, self.config.grid)

    def forward_tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, n, F) after the last norm, of the scans (B, C, D, H, W).

        The patches left out have no influence on the result.

        Args:
            x: the scans.
            keep: (B, n) int64 indices of the patches to encode, in d, h, w order (w fastest); None takes all.
        """
        grid = self.grid((x.shape[2], x.shape[3], x.shape[4]))
        places = self.positions(grid)
        tokens = self.patch_embed(x, keep) + (places if keep is None else places[0][keep])
        return self.norm(attended(self.blocks, tokens, grid, self.heads, keep))

    def forward(self, x: Tensor) -> list[Tensor]:
        """One feature map (B, F, d, h, w) of the scans (B, C, D, H, W)."""
        grid = self.grid((x.shape[2], x.shape[3], x.shape[4]))
        return [self.forward_tokens(x).mT.reshape(x.shape[0], self.pooled_dim, *grid)]

    def grid_blocks(self, depth: int) -> "PrimusBlocks":
        """Blocks of this width with learned positions of their own for this grid."""
        return PrimusBlocks(self.config, depth)

    def patch_embeddings(self) -> Iterator[nn.Module]:
        """The one embedding, of images and volumes."""
        return iter((self.patch_embed,))

    def block_modules(self) -> Iterator[nn.Module]:
        """The transformer blocks."""
        return iter(self.blocks)


class PrimusBlocks(GridBlocks):
    """A few more of an encoder's blocks, with learned positions of their own."""

    def __init__(self, config: PrimusConfig, depth: int) -> None:
        super().__init__()
        dim, _, self.heads = WIDTH_DEPTH_HEADS[config.size]
        self.own = config.grid
        self.pos_embed = nn.Parameter(torch.zeros(1, prod(config.grid), dim))
        self.blocks = eva_blocks(dim, depth, self.heads, drop_path=0.0)
        self.norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)

    def forward(self, tokens: Tensor, grid: Size3D) -> Tensor:
        """Tokens (B, d*h*w, F) of a grid (d, h, w) -> normalised tokens like them."""
        tokens = tokens + positions_on(grid, self.pos_embed, self.own)
        return self.norm(attended(self.blocks, tokens, grid, self.heads))

    def block_modules(self) -> Iterator[nn.Module]:
        """The blocks in the order in which they are computed."""
        return iter(self.blocks)
