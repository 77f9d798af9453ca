"""STU-Net (Huang et al. 2023, arXiv 2304.06716): a scalable residual U-Net, with the original's key names.

A scan of depth 1 runs the same 3D weights as a 2D network (`layers/convolution.py`).
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import LEAK, DepthFreeConv3d, UpsampleLayer, init_he
from scanfoundry.backbones.layers.levels import Stride, check_normalisable, context_features, cumulative
from scanfoundry.backbones.layers.packed import PackedLayers, Walk, chain, through
from scanfoundry.backbones.layers.segmentation import UNet, decode_with_skips
from scanfoundry.backbones.protocol import Encoder, EncoderConfig, Family
from scanfoundry.configs.geometry import Size3D

WIDTHS_AND_DEPTHS = {"S": (16, 1), "B": (32, 1), "L": (64, 2), "H": (96, 3)}
CHANNEL_FACTORS = (1, 2, 4, 8, 16, 16)


class STUNetConfig(EncoderConfig):
    """Size and strides of a STU-Net; the authors' released weights have (1, 1, 2) as the last stride."""

    family: ClassVar[Family] = "convolutional"
    name: Literal["stunet"] = "stunet"
    size: Literal["S", "B", "L", "H"] = "B"
    in_channels: int = 1
    strides: tuple[Stride, Stride, Stride, Stride, Stride] = ((2, 2, 2),) * 5  # (D, H, W) of each down-sampling

    @property
    def channels(self) -> tuple[int, ...]:
        """Feature channels of the six levels, finest first."""
        return tuple(WIDTHS_AND_DEPTHS[self.size][0] * factor for factor in CHANNEL_FACTORS)

    @property
    def depth(self) -> int:
        """Residual blocks per stage, in the encoder and in the decoder."""
        return WIDTHS_AND_DEPTHS[self.size][1]

    def build(self) -> "STUNetEncoder":
        """An encoder with fresh weights."""
        return STUNetEncoder(self)


class BasicResBlock(nn.Module):
    """conv, norm, LeakyReLU, conv, norm, plus the input (as it is or through a 1x1x1 conv), LeakyReLU."""

    def __init__(self, channels: int, out_channels: int, stride: Size3D = (1, 1, 1), project: bool = False) -> None:
        super().__init__()
        self.conv1 = DepthFreeConv3d(channels, out_channels, 3, stride, 1)
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv2 = DepthFreeConv3d(out_channels, out_channels, 3, 1, 1)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv3 = DepthFreeConv3d(channels, out_channels, 1, stride) if project else None

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D', H', W'), or `walk(x)`."""
        if walk is not None:
            return walk(x)
        y = F.leaky_relu(self.norm1(self.conv1(x)), LEAK, inplace=True)
        y = self.norm2(self.conv2(y))
        shortcut = x if self.conv3 is None else self.conv3(x)
        return F.leaky_relu(y + shortcut, LEAK, inplace=True)

    def packed(self, x: Tensor, layers: PackedLayers) -> Tensor:
        """`forward` on packed maps (N, d, h, w, channels) of visible blocks."""
        y = layers.norm(self.norm1, layers.conv(self.conv1, x), LEAK)
        shortcut = x if self.conv3 is None else layers.conv(self.conv3, x)
        return layers.norm(self.norm2, layers.conv(self.conv2, y), LEAK, shortcut)


def res_stage(channels: int, out_channels: int, depth: int, stride: Size3D = (1, 1, 1)) -> nn.Sequential:
    """One block that changes channels and size, then `depth - 1` that keep them."""
    first = BasicResBlock(channels, out_channels, stride, project=True)
    return nn.Sequential(first, *(BasicResBlock(out_channels, out_channels) for _ in range(depth - 1)))


class STUNetEncoder(Encoder):
    """The contracting path: six levels, the finest at full resolution; parameters `conv_blocks_context.*`."""

    config: STUNetConfig

    def __init__(self, config: STUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.feature_channels = config.channels
        self.pooled_dim = config.channels[-1]
        inputs = (config.in_channels, *config.channels[:-1])
        strides: tuple[Size3D, ...] = ((1, 1, 1), *config.strides)
        self.conv_blocks_context = nn.ModuleList(
            res_stage(i, o, config.depth, s) for i, o, s in zip(inputs, config.channels, strides, strict=True)
        )
        init_he(self.modules())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Six feature maps (B, F, d, h, w) of the scans (B, C, D, H, W), full resolution first."""
        return context_features(self.conv_blocks_context, x)

    def block_modules(self) -> Iterator[nn.Module]:
        """The residual blocks of all stages."""
        for stage in self._stages():
            yield from stage

    def decoder(self, num_classes: int) -> "STUNet":
        """The STU-Net of this encoder."""
        return STUNet(self, num_classes, deep_supervision=True)

    def packed_levels(self, layers: PackedLayers) -> list[Walk]:
        """The six stages on visible blocks."""
        return [chain(through(block, layers) for block in stage) for stage in self._stages()]

    def _stages(self) -> Iterable[Iterable[BasicResBlock]]:
        return cast(Iterable[Iterable[BasicResBlock]], self.conv_blocks_context)

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Cumulative strides (D, H, W) of the six levels; the depth stays 1 in 2D."""
        return cumulative(self.config.strides, is_2d)

    def check_input(self, shape: Size3D) -> None:
        """Refuse sizes that leave one voxel at the deepest level, which InstanceNorm cannot normalise."""
        total = self.feature_strides(is_2d=shape[0] == 1)[-1]
        check_normalisable(shape, total, "STU-Net", "take a larger crop or smaller strides")


class STUNet(UNet):
    """Encoder, decoder and segmentation heads under the original's names; shares the encoder's weights."""

    encoder_names, head_names = ("conv_blocks_context.",), ("seg_outputs.",)

    def __init__(self, encoder: STUNetEncoder, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        self.config = encoder.config
        self.deep_supervision = deep_supervision
        self.conv_blocks_context = encoder.conv_blocks_context
        channels, depth = encoder.config.channels[::-1], encoder.config.depth
        pairs = list(pairwise(channels))  # (from, to), deepest first
        self.conv_blocks_localization = nn.ModuleList(res_stage(2 * o, o, depth) for _, o in pairs)
        self.upsample_layers = nn.ModuleList(UpsampleLayer(i, o) for i, o in pairs)
        self.seg_outputs = nn.ModuleList(DepthFreeConv3d(o, num_classes, 1) for _, o in pairs)
        for part in (self.conv_blocks_localization, self.upsample_layers, self.seg_outputs):
            init_he(part.modules())

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's six feature maps, finest first."""
        return context_features(self.conv_blocks_context, x)

    def block_modules(self) -> Iterator[nn.Module]:
        """The residual blocks of the decoder, deepest first."""
        for stage in self.conv_blocks_localization:
            yield from cast(nn.Sequential, stage)

    def output_layers(self) -> list[nn.Module]:
        """The five 1x1x1 convolutions, full resolution first."""
        return list(self.seg_outputs)[::-1]

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """Decoder features of the five finer levels, full resolution first, from the encoder's six."""
        return decode_with_skips(self.upsample_layers, self.conv_blocks_localization, features)
