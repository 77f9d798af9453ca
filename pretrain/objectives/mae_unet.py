"""MAE on a convolutional U-Net: blocks of the scan are hidden, the whole network predicts them.

As OpenMind's (Wald et al. 2024, arXiv 2412.17041) and S3D's (Wald et al. 2024, arXiv 2410.23132): the network sees the
scan with holes, its own decoder is trained, and the loss is over what was hidden. A dense network has no unit of its
own, so that a block may be as small as one voxel (inpainting of pixels).
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.layers.segmentation import UNet
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.losses.reconstruction import masked_mse, patch_normalise
from scanfoundry.pretrain.masking import enlarge, patchify, unpatchify
from scanfoundry.pretrain.objectives.blocks import BlockConfig, BlockObjective

TOKEN_STD = 0.02


class UNetMAEConfig(BlockConfig, Protocol):
    """What it takes of `MAEConfig`, filled in for convolutional backbones."""

    @property
    def hide(self) -> Literal["zeros", "token"] | None: ...


class Holes(nn.Module):
    """Replaces hidden voxels by zeros, or by a learned value for each channel."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, channels, 1, 1, 1)) if learned else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=TOKEN_STD)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Scans x (B, C, D, H, W), hidden (B, 1, D, H, W) bool -> scans with holes."""
        if self.mask_token is None:
            return x.masked_fill(hidden, 0)
        return torch.where(hidden, self.mask_token.to(x.dtype), x)


class UNetMAE(BlockObjective):
    """Encoder, the backbone's own decoder, and an output convolution that gives voxels."""

    config: UNetMAEConfig
    own_decoder = True

    def __init__(self, config: UNetMAEConfig, encoder: Encoder, decoder: UNet) -> None:
        super().__init__(config, encoder)
        self.decoder = decoder
        self.holes = Holes(encoder.in_channels, learned=config.hide == "token")
        self.head = DepthFreeConv3d(encoder.feature_channels[0], encoder.in_channels, 1)

    def predict(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """Predicted voxels (B, C, D, H, W), target units, from the blocks that the mask leaves visible."""
        hidden = enlarge(to_device(mask, voxels.device), self.patch(voxels.shape[2] == 1))
        seen = self.holes(voxels.to(self.head.weight.dtype), hidden)
        return self.head(self.decoder.decode(self.encoder(seen))[0])

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss over the valid hidden voxels; metric `reconstruction` (B,)."""
        batch = views[0]
        mask = self.mask(batch)
        prediction = self.predict(batch.voxels, mask)
        loss, of_each = self.score_scans(prediction, self.wanted(batch), batch.valid, mask)
        return loss, {"reconstruction": of_each.detach()}

    def score_scans(self, prediction: Tensor, image: Tensor, valid: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`masked_mse` of predicted voxels (B, C, D, H, W) against an image, in float32 or better.

        Nothing is gathered, so that samples may hide different numbers of blocks.
        """
        wide = torch.promote_types(prediction.dtype, torch.float32)
        patch, target = self.patch(image.shape[2] == 1), image.to(wide)
        if self.config.normalise_target:
            patches = patch_normalise(patchify(target, patch), patchify(valid, patch), self.config.target_eps)
            target = unpatchify(patches, (mask.shape[2], mask.shape[3], mask.shape[4]), patch)
        counted = enlarge(to_device(mask, image.device), patch) & valid
        everywhere = torch.ones(len(image), 1, dtype=torch.bool, device=image.device)
        one, other, where = (_one_patch(x) for x in (prediction.to(wide), target, counted))
        return masked_mse(one, other, everywhere, where)

    def check_shape(self, shape: Size3D) -> None:
        """Crops (D, H, W) must be at least two whole blocks, and what the encoder can encode."""
        self.check_whole_blocks(shape)
        if shape == self.patch(shape[0] == 1):
            raise UserError(
                f"a crop of (D, H, W) = {shape} is one block: nothing would stay visible; enlarge the crop or set "
                "smaller blocks"
            )
        self.encoder.check_input(shape)


def _one_patch(x: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, 1, V, C): a scan as one patch."""
    return x.flatten(2).mT.unsqueeze(1)
