"""Residual encoder of nnU-Net (Isensee et al. 2024, arXiv 2404.09556): the "ResEnc" presets, with the original's keys.

The defaults are ResEnc-L as OpenMind pre-trained it (Wald et al. 2024, arXiv 2412.17041). Blocks are those of ResNet-D
(He et al. 2019, arXiv 1812.01187): the shortcut is averaged, then projected. As in STU-Net, a scan of depth 1 runs the
same 3D weights as a 2D network.
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder, Walk, masked_mean
from scanfoundry.backbones.stunet import (
    LEAK,
    DepthFreeConv3d,
    Stride,
    check_normalisable,
    context_features,
    cumulative,
    init_he,
)
from scanfoundry.configs.base import Config
from scanfoundry.configs.geometry import Size3D

Positive = Annotated[int, Field(gt=0)]


class ResEncConfig(Config):
    """Channels and blocks of each level, finest first, and the stride (D, H, W) into each but the first."""

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


class ConvNorm(nn.Module):
    """Convolution with same padding, then InstanceNorm."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int = 3, stride: Size3D = (1, 1, 1), bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = DepthFreeConv3d(channels, out_channels, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D', H', W')."""
        return self.norm(self.conv(x))


class ConvNormAct(ConvNorm):
    """The same and LeakyReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D', H', W')."""
        return F.leaky_relu(super().forward(x), LEAK, inplace=True)


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
        return F.avg_pool3d(x, window, window, ceil_mode=True)


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

    def pooled(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`masked_mean` of the deepest level: (B, pooled_dim)."""
        return masked_mean(self.forward(x)[-1], valid)

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Cumulative strides (D, H, W) of the levels; the depth stays 1 in 2D."""
        return cumulative(self.config.strides, is_2d)

    def check_input(self, shape: Size3D) -> None:
        """Refuse sizes that leave one voxel at the deepest level, which InstanceNorm cannot normalise."""
        total = self.feature_strides(is_2d=shape[0] == 1)[-1]
        check_normalisable(shape, total, "ResEnc", "take a larger crop or smaller strides")
