"""Decoders over encoded tokens and mask tokens, for images and volumes.

MAE's is a narrow transformer (He et al. 2022). Where an encoder offers blocks of its own kind, as Primus does, two of
these decode (OpenMind, Wald et al. 2024, arXiv 2412.17041).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.positions import positions_like
from scanfoundry.backbones.protocol import GridBlocks
from scanfoundry.backbones.vit import INIT_STD, init_linear, transformer_blocks
from scanfoundry.configs.geometry import Size3D

OWN_DEPTH, OWN_STD = 2, 1e-6  # OpenMind's: blocks of the encoder's kind, and the spread of the mask token


class PatchDecoder(nn.Module, ABC):
    """From the encoder's tokens to `outputs` (for 2D, for 3D) numbers for each patch."""

    mask_token: nn.Parameter

    @abstractmethod
    def forward(self, encoded: Tensor, keep: Tensor, grid: Size3D, is_2d: bool, wanted: Tensor | None = None) -> Tensor:
        """Outputs (B, m, outputs) of the patches `wanted`, or of all patches of the grid in order.

        Args:
            encoded: (B, e + n, F), e tokens of no place (class token, registers), then those of the n visible
                patches.
            keep: (B, n) int64, the visible ones' places in the grid.
            grid: patches (d, h, w) of the scans.
            is_2d: whether the patches are of images.
            wanted: (B, m) int64 places, None for all.
        """


class TokenDecoder(PatchDecoder):
    """MAE's own; size: width, depth, heads."""

    def __init__(self, encoder_dim: int, size: tuple[int, int, int], outputs: tuple[int, int]) -> None:
        super().__init__()
        dim, depth, heads = size
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = transformer_blocks(dim, depth, heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_2d = nn.Linear(dim, outputs[0])
        self.head_3d = nn.Linear(dim, outputs[1])
        nn.init.normal_(self.mask_token, std=INIT_STD)
        for linear in (self.embed, self.head_2d, self.head_3d):
            init_linear(linear)

    def forward(self, encoded: Tensor, keep: Tensor, grid: Size3D, is_2d: bool, wanted: Tensor | None = None) -> Tensor:
        """As of `PatchDecoder`; tokens of no place take part."""
        embedded = self.embed(encoded)
        extra = encoded.shape[1] - keep.shape[1]
        tokens = _among(self.mask_token, embedded[:, extra:], keep, grid)
        tokens = tokens + positions_like(grid, tokens.shape[-1], is_2d, embedded)
        tokens = torch.cat((embedded[:, :extra], tokens), dim=1)  # tokens of no place have position zero
        if wanted is None:
            decoded = self.blocks(tokens)[:, extra:]
        else:
            decoded = attend_for(self.blocks[-1], self.blocks[:-1](tokens), wanted + extra)
        return (self.head_2d if is_2d else self.head_3d)(self.norm(decoded))

    def block_modules(self) -> Iterator[nn.Module]:
        """The transformer blocks, for activation checkpointing."""
        return iter(self.blocks)


class OwnBlocksDecoder(PatchDecoder):
    """Blocks of the encoder's kind and width over all patches; tokens of no place are left out."""

    def __init__(self, blocks: GridBlocks, dim: int, outputs: tuple[int, int]) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = blocks
        self.head_2d = nn.Linear(dim, outputs[0])
        self.head_3d = nn.Linear(dim, outputs[1])
        nn.init.normal_(self.mask_token, std=OWN_STD)
        for linear in (self.head_2d, self.head_3d):
            init_linear(linear)

    def forward(self, encoded: Tensor, keep: Tensor, grid: Size3D, is_2d: bool, wanted: Tensor | None = None) -> Tensor:
        """As of `PatchDecoder`."""
        tokens = _among(self.mask_token, encoded[:, encoded.shape[1] - keep.shape[1] :], keep, grid)
        decoded = self.blocks(tokens, grid)
        if wanted is not None:
            decoded = decoded.gather(1, _places(wanted, decoded))
        return (self.head_2d if is_2d else self.head_3d)(decoded)


def _among(mask_token: Tensor, visible: Tensor, keep: Tensor, grid: Size3D) -> Tensor:
    """Tokens (B, d*h*w, F) of a grid: the visible ones (B, n, F) at their places keep (B, n), mask tokens elsewhere."""
    tokens = mask_token.to(visible.dtype).expand(len(keep), grid[0] * grid[1] * grid[2], -1)
    return tokens.scatter(1, _places(keep, tokens), visible)


def _places(chosen: Tensor, tokens: Tensor) -> Tensor:
    return chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])


def attend_for(block: Any, tokens: Tensor, rows: Tensor) -> Tensor:
    """A pre-norm transformer block's output at some of the tokens alone, which see all of them: what follows needs
    no others. tokens (B, n, F), rows (B, m) int64 -> (B, m, F). The block is timm's, without LayerScale or drops."""
    attention = block.attn
    batch, width = len(tokens), tokens.shape[-1]
    normed, kept = block.norm1(tokens), tokens.gather(1, _places(rows, tokens))
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(normed.gather(1, _places(rows, normed)), weight[:width], bias[:width])
    key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    shape = (batch, -1, attention.num_heads, attention.head_dim)
    q, k, v = (x.view(shape).transpose(1, 2) for x in (query, key, value))
    seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, width)
    kept = kept + attention.proj(seen)
    return kept + block.mlp(block.norm2(kept))
