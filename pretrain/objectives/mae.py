"""Masked autoencoder (He et al. 2022, arXiv 2111.06377) on a ViT, for images and volumes through one trunk."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scanforge.backbones.positions import sincos_positions
from scanforge.backbones.protocol import Encoder, Triple
from scanforge.backbones.vit import INIT_STD, ViTEncoder, init_linear, transformer_blocks
from scanforge.configs.base import Config
from scanforge.configs.errors import UserError
from scanforge.pretrain.masking import visible_indices
from scanforge.pretrain.objectives.protocol import MaskedObjective

# width, depth, heads; the paper has one decoder for B, L and H, the small ones keep its 32 channels per head
DECODERS = {192: (192, 4, 6), 384: (256, 4, 8)}
PAPER_DECODER = (512, 8, 16)


class MAEConfig(Config):
    """Share of the patches hidden, the decoder's size (None: by the encoder's) and the target."""

    name: Literal["mae"] = "mae"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    decoder_dim: Annotated[int, Field(gt=0)] | None = None
    decoder_depth: Annotated[int, Field(gt=0)] | None = None
    decoder_heads: Annotated[int, Field(gt=0)] | None = None
    normalise_target: bool = True  # per patch
    target_eps: Annotated[float, Field(ge=0)] = 1e-6  # floors a flat patch's std at its root; raise for noisy air

    def build(self, encoder: Encoder) -> "MAE":
        """The objective on an encoder; UserError where they do not go together."""
        if not isinstance(encoder, ViTEncoder):
            raise UserError(
                "objective 'mae' needs tokens, that is backbone 'vit'; for a convolutional one take 'spark'"
            )
        return MAE(self, encoder)

    def decoder_size(self, encoder_dim: int) -> tuple[int, int, int]:
        """Width, depth and heads of the decoder; UserError where the heads do not divide the width."""
        chosen = (self.decoder_dim, self.decoder_depth, self.decoder_heads)
        defaults = DECODERS.get(encoder_dim, PAPER_DECODER)
        dim, depth, heads = (given or default for given, default in zip(chosen, defaults, strict=True))
        if dim % heads:
            raise UserError(f"decoder_dim {dim} is not a multiple of decoder_heads {heads}; change one of them")
        return dim, depth, heads


class MAE(MaskedObjective):
    """Encode the visible patches, decode them among mask tokens, predict the voxels of the hidden ones."""

    config: MAEConfig
    encoder: ViTEncoder

    def __init__(self, config: MAEConfig, encoder: ViTEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        dim, depth, heads = config.decoder_size(encoder.pooled_dim)
        self.decoder_embed = nn.Linear(encoder.pooled_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_blocks = transformer_blocks(dim, depth, heads)
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_2d = nn.Linear(dim, self._voxels(is_2d=True))
        self.head_3d = nn.Linear(dim, self._voxels(is_2d=False))
        nn.init.normal_(self.mask_token, std=INIT_STD)
        for linear in (self.decoder_embed, self.head_2d, self.head_3d):
            init_linear(linear)
        self._positions: dict[tuple, Tensor] = {}

    def _voxels(self, is_2d: bool) -> int:
        depth, height, width = self.encoder.patch(is_2d)
        return depth * height * width * self.encoder.in_channels

    def patch(self, is_2d: bool) -> Triple:
        """The encoder's patch."""
        return self.encoder.patch(is_2d)

    def grid(self, shape: Triple) -> Triple:
        """The encoder's grid of tokens."""
        return self.encoder.grid(shape)

    def predict_patches(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """`predict`: a transformer's output is patches already."""
        return self.predict(voxels, mask)

    def predict(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """Predicted patches (B, L, V, C) of scans (B, C, D, H, W), from the patches that the mask leaves visible."""
        is_2d, grid = voxels.shape[2] == 1, (mask.shape[2], mask.shape[3], mask.shape[4])
        keep = visible_indices(mask)  # (B, n)
        encoded = self.encoder.forward_tokens(voxels.to(self.mask_token.dtype), keep)  # (B, 1 + n, F)
        embedded = self.decoder_embed(encoded)
        tokens = self.mask_token.to(embedded.dtype).expand(len(keep), mask[0].numel(), -1)
        place = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        tokens = tokens.scatter(1, place, embedded[:, 1:]) + self.positions(grid, is_2d, embedded)
        tokens = torch.cat((embedded[:, :1], tokens), dim=1)  # the class token's position is zero
        decoded = self.decoder_norm(self.decoder_blocks(tokens))[:, 1:]
        head = self.head_2d if is_2d else self.head_3d
        return head(decoded).unflatten(-1, (-1, self.encoder.in_channels))

    def positions(self, grid: Triple, is_2d: bool, like: Tensor) -> Tensor:
        """The decoder's fixed positions (L, F), computed once for each grid."""
        key = (grid, is_2d, like.dtype, like.device)
        if key not in self._positions:
            self._positions[key] = sincos_positions(grid, like.shape[-1], is_2d).to(like)
        return self._positions[key]

    def check_shape(self, shape: Triple) -> None:
        """Crops (D, H, W) must hold at least two whole patches."""
        d, h, w = self.encoder.grid(shape)
        if d * h * w < 2:
            raise UserError(f"a crop of (D, H, W) = {shape} is one patch: nothing would stay visible; enlarge the crop")
