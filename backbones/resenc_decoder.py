"""The whole residual-encoder U-Net of nnU-Net (Isensee et al. 2024, arXiv 2404.09556), with the original's keys."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import ConvNormAct, DepthFreeConv3d, init_he
from scanfoundry.backbones.layers.segmentation import UNet, decode_with_skips
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D


class Levels(Protocol):
    """What a `ResEncConfig` says of the levels of the network."""

    features: tuple[int, ...]

    @property
    def strides(self) -> Sequence[Size3D]:
        """The stride (D, H, W) into each level but the first."""


class StrideUp(nn.ConvTranspose3d):
    """A transposed convolution whose kernel is its stride: every voxel becomes a block of its own.

    The encoder makes ceil(n / stride) voxels out of n. What the blocks have beyond n is cut off, so that odd sizes fit
    too; on sizes that the stride divides it is the original. A depth of 1 stays: each voxel becomes the mean over depth
    of its block.
    """

    def __init__(self, channels: int, out_channels: int, stride: Size3D) -> None:
        super().__init__(channels, out_channels, stride, stride)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:  # type: ignore[override]
        """(B, C, d, h, w) -> (B, C', *size), where each axis of size is at most d, h, w times the stride."""
        if size[0] == 1 and x.shape[2] == 1:
            stride = cast(Size3D, self.stride)[1:]
            y = F.conv_transpose2d(x.squeeze(2), self.weight.mean(dim=2), self.bias, stride).unsqueeze(2)
        else:
            y = super().forward(x)
        return y[:, :, : size[0], : size[1], : size[2]]


class DecoderStage(nn.Module):
    """One convolution over the up-sampled features and those of the encoder beside them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormAct(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2 * channels, D, H, W) -> (B, channels, D, H, W)."""
        return self.convs(x)


class ResEncUNet(UNet):
    """Encoder, decoder of transposed convolutions, and a 1x1x1 convolution for logits of each level.

    Without the original's second names of the same weights: `decoder.encoder.*` and `all_modules.*`.
    """

    head_names = ("seg_layers.",)

    def __init__(self, encoder: Encoder, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        self.config = encoder.config
        config = cast(Levels, encoder.config)
        self.encoder = encoder
        self.deep_supervision = deep_supervision
        pairs = list(pairwise(config.features[::-1]))  # (from, to), deepest first
        strides = config.strides[::-1]
        self.stages = nn.ModuleList(DecoderStage(fine) for _, fine in pairs)
        self.transpconvs = nn.ModuleList(
            StrideUp(deep, fine, stride) for (deep, fine), stride in zip(pairs, strides, strict=True)
        )
        self.seg_layers = nn.ModuleList(DepthFreeConv3d(fine, num_classes, 1) for _, fine in pairs)
        for part in (self.stages, self.transpconvs, self.seg_layers):
            init_he(part.modules())

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's feature maps, finest first."""
        return self.encoder(x)

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """The feature maps of all levels but the deepest, finest first, from the encoder's."""
        return decode_with_skips(self.transpconvs, self.stages, features)

    def block_modules(self) -> Iterator[nn.Module]:
        """The stages, deepest first."""
        return iter(self.stages)

    def output_layers(self) -> list[nn.Module]:
        """The 1x1x1 convolutions, finest first."""
        return list(self.seg_layers)[::-1]
