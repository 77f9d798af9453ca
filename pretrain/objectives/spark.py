"""SparK: masked image modelling for convolutional networks (Tian et al. 2023, arXiv 2301.03580), 2D and 3D."""

from abc import abstractmethod
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.layers.segmentation import UNet
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.masking import masked_count
from scanfoundry.pretrain.objectives.blocks import BlockObjective
from scanfoundry.pretrain.objectives.light_decoder import LightDecoder
from scanfoundry.pretrain.objectives.protocol import ObjectiveOptions
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.encoders import can_be_packed, packed_features
from scanfoundry.pretrain.sparse.norm import packed_norm

Positive = Annotated[int, Field(gt=0)]


class SparkConfig(ObjectiveOptions):
    """Blocks, the share of them hidden, the decoder and the target."""

    name: Literal["spark"] = "spark"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    block_2d: tuple[Positive, Positive] = (32, 32)  # (H, W), a multiple of the encoder's total stride
    block_3d: tuple[Positive, Positive, Positive] = (32, 32, 32)  # (D, H, W)
    decoder: Literal["light", "own"] = "light"  # SparK's, thrown away later, or the backbone's own U decoder
    decoder_width: Annotated[int, Field(gt=0, multiple_of=32)] = 256  # light: at the deepest level, then halved
    skip_levels: Annotated[int, Field(ge=1, le=5)] = 4  # light: deepest levels that reach it; SparK has 4
    normalise_target: bool = True  # per block
    reconstruct: Literal["augmented", "clean"] = "augmented"  # clean: the crop before its intensities were changed
    target_eps: Annotated[float, Field(ge=0)] = 1e-6  # floors a flat block's std at its root; raise for noisy air

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "SparkConfig":
        for key in ("decoder_width", "skip_levels"):
            if self.decoder == "own" and getattr(self, key) != SparkConfig.model_fields[key].default:
                raise ValueError(f"{key} is for decoder 'light': the backbone's own has its sizes; remove it")
        return self

    def block(self, is_2d: bool) -> Size3D:
        """The block (D, H, W) in voxels."""
        return (1, *self.block_2d) if is_2d else self.block_3d

    def build(self, encoder: Encoder) -> "SparseMasked":
        """The objective on an encoder.

        Raises:
            UserError: they do not go together.
        """
        if not can_be_packed(encoder):
            raise UserError(
                "objective 'spark' needs a backbone that is computed on visible blocks alone ('stunet', 'mednext', "
                "'resenc'); for 'vit' and 'primus' take 'mae'"
            )
        for is_2d, name in ((True, "block_2d"), (False, "block_3d")):
            stride, block = encoder.size_divisor(is_2d), self.block(is_2d)
            if any(b % s for b, s in zip(block, stride, strict=True)):
                axes = slice(1, None) if is_2d else slice(None)
                raise UserError(
                    f"objective.{name} {block[axes]} must be a multiple of the encoder's total stride "
                    f"{stride[axes]}; change the block or backbone.strides"
                )
        if self.decoder == "light":
            return Spark(self, encoder)
        own = encoder.feature_decoder()
        if own is None:
            raise UserError(
                f"objective.decoder 'own': backbone '{encoder.config.name}' has no decoder of its own; take 'light'"
            )
        return OwnSpark(self, encoder, own)


class Densify(nn.Module):
    """Fill the hidden voxels of one level with its mask token and bring it to the decoder's width."""

    def __init__(self, channels: int, width: int, deepest: bool) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.mask_token = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        kernel = 1 if deepest else 3
        same = deepest and channels == width
        self.project = nn.Identity() if same else DepthFreeConv3d(channels, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, blocks: ActiveBlocks) -> Tensor:
        """Packed x (N, d, h, w, channels) -> dense (B, width, D, H, W)."""
        normed = packed_norm(self.norm, x, blocks)
        return self.project(blocks.unpack(normed, self.mask_token.flatten()))


class Fill(nn.Module):
    """Fill the hidden voxels of one level with its mask token, and leave the visible ones as the encoder made them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, blocks: ActiveBlocks) -> Tensor:
        """Packed x (N, d, h, w, channels) -> dense (B, channels, D, H, W)."""
        return blocks.unpack(x, self.mask_token).contiguous()


class SparseMasked(BlockObjective):
    """Encode visible blocks alone, fill the holes at every level, decode, predict the hidden blocks' voxels."""

    config: SparkConfig

    @abstractmethod
    def output_layer(self) -> nn.Module:
        """What gives the voxels, last of all."""

    @abstractmethod
    def decode(self, features: list[Tensor], blocks: ActiveBlocks, flat: bool) -> Tensor:
        """Voxels (B, C, D, H, W) from packed features, finest first; flat: of scans of depth 1."""

    def predict(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """Predicted voxels (B, C, D, H, W), target units, from the blocks that the mask leaves visible."""
        blocks = ActiveBlocks(~mask, voxels.device)
        voxels = voxels.to(next(self.output_layer().parameters()).dtype)
        features = packed_features(self.encoder, voxels, blocks)
        return self.decode(features, blocks, flat=voxels.shape[2] == 1)

    def check_shape(self, shape: Size3D) -> None:
        """Crops (D, H, W) must be whole blocks, and leave two visible voxels at the deepest level to normalise."""
        is_2d = shape[0] == 1
        block, stride = self.config.block(is_2d), self.encoder.size_divisor(is_2d)
        self.check_whole_blocks(shape)
        d, h, w = self.grid(shape)
        visible = d * h * w - masked_count(d * h * w, self.config.mask_ratio) if d * h * w > 1 else 0
        deep = [b // s for b, s in zip(block, stride, strict=True)]
        if visible * deep[0] * deep[1] * deep[2] < 2:
            raise UserError(
                f"a crop of (D, H, W) = {shape} has {d * h * w} blocks of {block} and leaves {visible} visible, "
                "too little for the deepest level; take a larger crop, smaller blocks or a smaller mask_ratio"
            )


class Spark(SparseMasked):
    """With SparK's light decoder."""

    def __init__(self, config: SparkConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.decoder = LightDecoder(config.decoder_width, level_strides(encoder), encoder.in_channels)
        levels = list(zip(encoder.feature_channels[::-1], self.decoder.widths, strict=True))
        self.densify = nn.ModuleList(  # deepest first
            Densify(channels, width, deepest=level == 0)
            for level, (channels, width) in enumerate(levels[: config.skip_levels])
        )

    def output_layer(self) -> nn.Module:
        """The decoder's last convolution."""
        return self.decoder.head

    def decode(self, features: list[Tensor], blocks: ActiveBlocks, flat: bool) -> Tensor:
        """Normalised, filled and projected, the deepest levels go through the light decoder."""
        deepest_first = zip(self.densify, features[::-1], strict=False)
        skips = [densify(feature, blocks) for densify, feature in deepest_first]
        return self.decoder(skips, flat=flat)


class OwnSpark(SparseMasked):
    """With the backbone's own decoder, which reads the features of all levels as it does in fine-tuning."""

    own_decoder = True

    def __init__(self, config: SparkConfig, encoder: Encoder, decoder: UNet) -> None:
        super().__init__(config, encoder)
        self.decoder = decoder
        self.fill = nn.ModuleList(Fill(channels) for channels in encoder.feature_channels)  # finest first
        self.head = DepthFreeConv3d(encoder.feature_channels[0], encoder.in_channels, 1)

    def output_layer(self) -> nn.Module:
        """The output convolution."""
        return self.head

    def decode(self, features: list[Tensor], blocks: ActiveBlocks, flat: bool) -> Tensor:
        """Filled, all levels go through the backbone's decoder."""
        dense = [fill(feature, blocks) for fill, feature in zip(self.fill, features, strict=True)]
        return self.head(self.decoder.decode(dense)[0])


def level_strides(encoder: Encoder) -> tuple[Size3D, ...]:
    """Stride (D, H, W) from each level to the next, finest first; the depth's also where 2D does not use it."""
    levels = encoder.feature_strides(is_2d=False)
    return tuple((b[0] // a[0], b[1] // a[1], b[2] // a[2]) for a, b in pairwise(levels))
