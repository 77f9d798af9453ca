"""Residual encoder of nnU-Net (Isensee et al. 2024, arXiv 2404.09556): the "ResEnc" presets, with the original's keys.

The defaults are ResEnc-L as OpenMind pre-trained it (Wald et al. 2024, arXiv 2412.17041). Blocks are those of ResNet-D
(He et al. 2019, arXiv 1812.01187): the shortcut is averaged, then projected. As in STU-Net, a scan of depth 1 runs the
same 3D weights as a 2D network.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import LEAK, ConvNorm, ConvNormAct, init_he
from scanfoundry.backbones.layers.levels import Stride, check_normalisable, context_features, cumulative
from scanfoundry.backbones.layers.packed import PackedLayers, Walk, chain, through
from scanfoundry.backbones.protocol import Encoder, EncoderConfig, Family
from scanfoundry.backbones.resenc_decoder import ResEncUNet
from scanfoundry.configs.geometry import Size3D

Positive = Annotated[int, Field(gt=0)]


class ResEncConfig(EncoderConfig):
    """Channels and blocks of each level, finest first, and the stride (D, H, W) into each but the first."""

    family: ClassVar[Family] = "convolutional"
    name: Literal["resenc"] = "resenc"
    in_channels: Positive = 1
    features: Annotated[tuple[Positive, ...], Field(min_length=2)] = (32, 64, 128, 256, 320, 320)
    blocks: tuple[Positive, ...] = (1, 3, 4, 6, 6, 6)
    strides: tuple[Stride, ...] = ((2, 2, 2),) * 5

    @model_validator(mode="after")
    def _levels_agree(self) -> "ResEncConfig":
        levels = len(self.features)
        if (len(self.blocks), len(self.strides)) != (levels, levels - 1):
            raise ValueError(
                f"{levels} levels of features need {levels} numbers of blocks and {levels - 1} strides: "
                f"there are {len(self.blocks)} and {len(self.strides)}"
            )
        return self

    def build(self) -> "ResEncEncoder":
        """An encoder with fresh weights."""
        return ResEncEncoder(self)


class ShortcutPool(nn.Module):
    """Average over windows of the stride; a window that reaches over the end averages the voxels that exist.

    The original drops such a window, so that its sum with the convolution fails on odd sizes. On even ones, both are
    the same. A depth of 1 stays.
    """

    def __init__(self, stride: Size3D) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, ceil(D / stride), ...)."""
        window = [min(step, size) for step, size in zip(self.stride, x.shape[2:], strict=True)]  # torch refuses larger
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # torch has no such kernel (2.13)
            return F.avg_pool3d(x.float(), window, window, ceil_mode=True).to(x.dtype)
        return F.avg_pool3d(x, window, window, ceil_mode=True)


def packed_conv_norm(part: ConvNorm, x: Tensor, layers: PackedLayers, slope: float = 1.0) -> Tensor:
    """A `ConvNorm` on packed maps, then LeakyReLU(slope)."""
    return layers.norm(part.norm, layers.conv(part.conv, x), slope)


class BasicBlockD(nn.Module):
    """conv, norm, LeakyReLU, conv, norm, plus the input (averaged and projected where shapes differ), LeakyReLU."""

    def __init__(self, channels: int, out_channels: int, stride: Size3D = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, out_channels, stride=stride)
        self.conv2 = ConvNorm(out_channels, out_channels)
        parts: list[nn.Module] = [ShortcutPool(stride)] if max(stride) > 1 else []
        if channels != out_channels:
            parts.append(ConvNorm(channels, out_channels, kernel=1, bias=False))
        self.skip = nn.Sequential(*parts)  # nothing in it: the input as it is

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D', H', W'), or `walk(x)`."""
        if walk is not None:
            return walk(x)
        return F.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), LEAK, inplace=True)

    def packed(self, x: Tensor, layers: PackedLayers) -> Tensor:
        """`forward` on packed maps (N, d, h, w, channels) of visible blocks, which are whole windows of the stride."""
        y = layers.conv(self.conv2.conv, packed_conv_norm(self.conv1, x, layers, LEAK))
        for part in self.skip:
            if isinstance(part, ShortcutPool):
                x = layers.pool(x, part.stride)
            else:
                x = packed_conv_norm(cast(ConvNorm, part), x, layers)
        return layers.norm(self.conv2.norm, y, LEAK, x)


class Stem(nn.Module):
    """One convolution at full resolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormAct(channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D, H, W)."""
        return self.convs(x)


class ResidualStage(nn.Module):
    """A block that changes channels and size, then `count - 1` that keep them."""

    def __init__(self, channels: int, out_channels: int, count: int, stride: Size3D) -> None:
        super().__init__()
        first = BasicBlockD(channels, out_channels, stride)
        self.blocks = nn.Sequential(first, *(BasicBlockD(out_channels, out_channels) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D', H', W')."""
        return self.blocks(x)


class ResEncEncoder(Encoder):
    """Stem and stages; parameters `stem.*` and `stages.*`, as in the original's `encoder`."""

    config: ResEncConfig

    def __init__(self, config: ResEncConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.feature_channels = features = config.features
        self.pooled_dim = features[-1]
        self.stem = Stem(config.in_channels, features[0])
        inputs = (features[0], *features[:-1])
        strides: tuple[Size3D, ...] = ((1, 1, 1), *config.strides)
        levels = zip(inputs, features, config.blocks, strides, strict=True)
        self.stages = nn.ModuleList(ResidualStage(i, o, count, stride) for i, o, count, stride in levels)
        init_he(self.modules())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, F, d, h, w) of all levels of the scans (B, C, D, H, W), full resolution first."""
        return context_features(self.stages, self.stem(x))

    def block_modules(self) -> Iterator[nn.Module]:
        """The residual blocks of all stages."""
        for stage in self._stages():
            yield from stage

    def decoder(self, num_classes: int) -> ResEncUNet:
        """nnU-Net's U-Net of this encoder."""
        return ResEncUNet(self, num_classes, deep_supervision=True)

    def packed_levels(self, layers: PackedLayers) -> list[Walk]:
        """The stem and the first stage, then the other stages, on visible blocks."""
        stem = partial(packed_conv_norm, cast(ConvNorm, self.stem.convs[0]), layers=layers, slope=LEAK)
        first, *others = (chain(through(block, layers) for block in stage) for stage in self._stages())
        return [chain((stem, first)), *others]

    def _stages(self) -> Iterable[Iterable[BasicBlockD]]:
        return (cast(Iterable[BasicBlockD], cast(ResidualStage, stage).blocks) for stage in self.stages)

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Cumulative strides (D, H, W) of the levels; the depth stays 1 in 2D."""
        return cumulative(self.config.strides, is_2d)

    def check_input(self, shape: Size3D) -> None:
        """Refuse sizes that leave one voxel at the deepest level, which InstanceNorm cannot normalise."""
        total = self.feature_strides(is_2d=shape[0] == 1)[-1]
        check_normalisable(shape, total, "ResEnc", "take a larger crop or smaller strides")
