"""MAE on a transformer, for images and volumes through one trunk: hidden patches are dropped.

With `gradient_weight` a second decoder predicts the scan's gradient map, as in Uni4Eye (Cai et al. 2022, arXiv
2203.04614): what is hidden counts by its edges too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scanfoundry.backbones.protocol import TokenEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.losses.gradient_map import gradient_map
from scanfoundry.pretrain.masking import visible_indices
from scanfoundry.pretrain.objectives.masked import (
    MaskedConfig,
    MaskedObjective,
    check_two_patches,
    columns,
    hidden_indices,
)
from scanfoundry.pretrain.objectives.token_decoder import OWN_DEPTH, OwnBlocksDecoder, PatchDecoder, TokenDecoder


class TokenMAEConfig(MaskedConfig, Protocol):
    """What it takes of `MAEConfig`, filled in for transformers."""

    @property
    def gradient_weight(self) -> float: ...
    @property
    def decoder_depth(self) -> int | None: ...
    def decoder_size(self, encoder_dim: int) -> tuple[int, int, int]:
        """Width, depth and heads of a ViT's decoder."""


@dataclass(frozen=True)
class Target:
    """One picture of a batch to be predicted: (B, C, D, H, W), where it counts, by which decoder, for how much."""

    metric: str
    picture: str  # its name among the pictures
    decoder: PatchDecoder
    weight: float
    image: Tensor
    valid: Tensor
    seen: Tensor  # what it is predicted from, in its own kind of picture


class TokenMAE(MaskedObjective):
    """Encode the visible patches, decode them among mask tokens, predict the voxels of the hidden ones."""

    config: TokenMAEConfig
    encoder: TokenEncoder

    def __init__(self, config: TokenMAEConfig, encoder: TokenEncoder) -> None:
        super().__init__(config, encoder)
        self.decoder = self._patch_decoder()
        self.gradient_decoder = self._patch_decoder() if config.gradient_weight > 0 else None

    def _patch_decoder(self) -> PatchDecoder:
        """Blocks of the encoder's own kind where it offers them, else MAE's narrow transformer."""
        dim, config = self.encoder.pooled_dim, self.config
        own = self.encoder.grid_blocks(config.decoder_depth or OWN_DEPTH)
        if own is not None:
            return OwnBlocksDecoder(own, dim, self._voxels())
        return TokenDecoder(dim, config.decoder_size(dim), self._voxels())

    def _voxels(self) -> tuple[int, int]:
        """Numbers in a patch of an image and of a volume."""
        patches = (self.encoder.patch(is_2d=True), self.encoder.patch(is_2d=False))
        flat, solid = (d * h * w * self.encoder.in_channels for d, h, w in patches)
        return flat, solid

    def patch(self, is_2d: bool) -> Size3D:
        """The encoder's patch."""
        return self.encoder.patch(is_2d)

    def grid(self, shape: Size3D) -> Size3D:
        """The encoder's grid of tokens."""
        return self.encoder.grid(shape)

    def targets(self, batch: Batch) -> Iterator[Target]:
        """The scan, and its gradient map where that is asked for."""
        image = self.wanted(batch)
        yield Target("reconstruction", "scan", self.decoder, 1.0, image, batch.valid, batch.voxels)
        if self.gradient_decoder is not None:
            magnitude, known = gradient_map(image, batch.valid)
            weight = self.config.gradient_weight
            yield Target("gradient", "gradient map", self.gradient_decoder, weight, magnitude, known, magnitude)

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss over the valid voxels of the hidden patches; metrics `reconstruction`, `gradient`, each (B,).

        A voxel of the gradient map counts where its stencil is known (`gradient_map`).
        """
        batch = views[0]
        mask = self.mask(batch)
        device = batch.voxels.device
        keep, hidden = (to_device(places, device) for places in (visible_indices(mask), hidden_indices(mask)))
        encoded = self.encode(batch.voxels, keep)
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for target in self.targets(batch):
            prediction = self.decode(target.decoder, encoded, keep, mask, batch.is_2d, hidden)
            loss, of_each = self.score(prediction, target.image, target.valid, hidden)
            losses.append(target.weight * loss)
            metrics[target.metric] = of_each.detach()
        return sum(losses[1:], losses[0]), metrics

    def encode(self, voxels: Tensor, keep: Tensor) -> Tensor:
        """Tokens (B, extra + n, F) of the patches `keep` (B, n), `visible_indices` of the mask."""
        return self.encoder.forward_tokens(voxels.to(self.decoder.mask_token.dtype), keep)

    def decode(
        self,
        decoder: PatchDecoder,
        encoded: Tensor,
        keep: Tensor,
        mask: Tensor,
        is_2d: bool,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Predicted patches (B, n, V, C), target units: those `wanted` (B, n), or all."""
        grid = (mask.shape[2], mask.shape[3], mask.shape[4])
        predicted = decoder(encoded, keep, grid, is_2d, wanted)
        return predicted.unflatten(-1, (-1, self.encoder.in_channels))

    def predict_patches(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """Predicted patches (B, L, V, C) of the scans (B, C, D, H, W), visible ones among them."""
        keep = to_device(visible_indices(mask), voxels.device)
        return self.decode(self.decoder, self.encode(voxels, keep), keep, mask, voxels.shape[2] == 1)

    def predict_hidden(self, voxels: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """Predicted patches (B, n, V, C) that the mask hides."""
        keep = to_device(visible_indices(mask), voxels.device)
        return self.decode(self.decoder, self.encode(voxels, keep), keep, mask, voxels.shape[2] == 1, hidden)

    @torch.no_grad()
    def show(self, *views: Batch) -> dict[str, Tensor]:
        """Scan, visible part and reconstruction; the same of the gradient map where that is predicted."""
        batch = views[0]
        mask = self.mask(batch)
        keep = to_device(visible_indices(mask), batch.voxels.device)
        encoded = self.encode(batch.voxels, keep)
        shown: dict[str, Tensor] = {}
        for target in self.targets(batch):
            prediction = self.decode(target.decoder, encoded, keep, mask, batch.is_2d)
            shown |= columns(target.picture, self.compose(prediction, target.image, target.valid, mask, target.seen))
        return shown

    def check_shape(self, shape: Size3D) -> None:
        """Crops (D, H, W) must hold at least two whole patches, and a Sobel stencil where gradients are predicted."""
        check_two_patches(self.encoder, shape)
        if self.gradient_decoder is not None and (shape[0] == 2 or min(shape[1:]) < 3):
            raise UserError(
                f"a crop of (D, H, W) = {shape} is too thin for a gradient map: allowed is 3 voxels and more along "
                "each axis; enlarge the crop or set objective.gradient_weight to 0"
            )
