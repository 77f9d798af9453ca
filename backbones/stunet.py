"""STU-Net (Huang et al. 2023, arXiv 2304.06716): a scalable residual U-Net, with the original's key names.

A scan of depth 1 runs the same 3D weights as a 2D network. A 3x3x3 kernel padded on a depth of 1 meets only
zeros outside its centre slice, so `F.conv2d` with that slice is the same function at a third of the cost.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder, Walk, masked_mean
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D

Stride = tuple[Literal[1, 2], Literal[1, 2], Literal[1, 2]]
LEAK = 0.01
WIDTHS_AND_DEPTHS = {"S": (16, 1), "B": (32, 1), "L": (64, 2), "H": (96, 3)}
CHANNEL_FACTORS = (1, 2, 4, 8, 16, 16)


class STUNetConfig(Config):
    """Size and strides of a STU-Net; the authors' released weights have (1, 1, 2) as the last stride."""

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


class DepthFreeConv3d(nn.Conv3d):
    """A 3D convolution of odd kernel and same padding that runs as a 2D one where the depth is 1."""

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W'), or `walk(x)`; on depth 1 a depth stride has no effect."""
        if walk is not None:
            return walk(x)
        if x.shape[2] == 2 and self.kernel_size[0] == 3 and x.device.type == "cpu":
            return self._forward_depth_two(x)
        if x.shape[2] != 1:
            return super().forward(x)
        weight = self.weight[:, :, self.kernel_size[0] // 2]
        padding = cast(Size3D, self.padding)[1:]
        y = F.conv2d(x.squeeze(2), weight, self.bias, self.stride[1:], padding, groups=self.groups)
        return y.unsqueeze(2)

    def _forward_depth_two(self, x: Tensor) -> Tensor:
        """The same on depth 2, past an error of oneDNN: its bf16 gradients of a 3x3x3 kernel are garbage there.

        (torch 2.13, CPU; `test_bfloat16_gradients_on_depth_two`.) A third slice of zeros changes nothing else.
        """
        if x.dtype != torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        depth = (2 + self.stride[0] - 1) // self.stride[0]
        return super().forward(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :, :depth]


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


def res_stage(channels: int, out_channels: int, depth: int, stride: Size3D = (1, 1, 1)) -> nn.Sequential:
    """One block that changes channels and size, then `depth - 1` that keep them."""
    first = BasicResBlock(channels, out_channels, stride, project=True)
    return nn.Sequential(first, *(BasicResBlock(out_channels, out_channels) for _ in range(depth - 1)))


def init_he(modules: Iterable[nn.Module]) -> None:
    """Kaiming normal for LeakyReLU(0.01) on every convolution, zero biases (STU-Net v1)."""
    for module in modules:
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=LEAK)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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

    def pooled(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean over space of the deepest level, over the valid voxels (B, 1, D, H, W) alone: (B, pooled_dim)."""
        return masked_mean(self.forward(x)[-1], valid)

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Cumulative strides (D, H, W) of the six levels; the depth stays 1 in 2D."""
        return cumulative(self.config.strides, is_2d)

    def check_input(self, shape: Size3D) -> None:
        """Refuse sizes that leave one voxel at the deepest level, which InstanceNorm cannot normalise."""
        total = self.feature_strides(is_2d=shape[0] == 1)[-1]
        check_normalisable(shape, total, "STU-Net", "take a larger crop or smaller strides")


def cumulative(strides: Iterable[Size3D], is_2d: bool) -> tuple[Size3D, ...]:
    """Of levels that are each the one before at a stride (D, H, W), the strides from the input; in 2D depth stays 1."""
    levels: list[Size3D] = [(1, 1, 1)]
    for d, h, w in strides:
        depth, height, width = levels[-1]
        levels.append((1 if is_2d else depth * d, height * h, width * w))
    return tuple(levels)


def check_normalisable(shape: Size3D, total: Size3D, network: str, advice: str) -> None:
    """UserError where a scan (D, H, W) leaves one voxel at the total stride: a norm over space then has no variance."""
    if all(size <= stride for size, stride in zip(shape, total, strict=True)):
        axes = zip("DHW", shape, total, strict=True)
        allowed = " or ".join(f"{a} >= {t + 1}" for a, s, t in axes if not (a == "D" and s == 1))
        raise UserError(
            f"a scan of (D, H, W) = {tuple(shape)} is too small for {network} of total stride {total}: "
            f"allowed is {allowed}; {advice}"
        )


def context_features(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Outputs of all stages in turn, finest first."""
    features = []
    for stage in stages:
        x = stage(x)
        features.append(x)
    return features


class UpsampleLayer(nn.Module):
    """Nearest-neighbour up-sampling to the size of the skip, then a 1x1x1 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DepthFreeConv3d(channels, out_channels, 1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(B, channels, d, h, w) -> (B, out_channels, *size)."""
        # a 1x1x1 convolution commutes with nearest up-sampling: same values, fewer voxels to convolve
        return F.interpolate(self.conv(x), size=size, mode="nearest")


class STUNet(nn.Module):
    """Encoder, decoder and segmentation heads under the original's names; shares the encoder's weights."""

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

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W); with deep supervision a list of five, full resolution first.

        The coarser maps of deep supervision stay at their own resolution.
        """
        features = context_features(self.conv_blocks_context, x)
        decoded = self.decode(features)
        if not self.deep_supervision:
            return self.seg_outputs[-1](decoded[0])
        return [head(y) for head, y in zip(reversed(self.seg_outputs), decoded, strict=True)]

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """Decoder features of the five finer levels, full resolution first, from the encoder's six."""
        x, decoded = features[-1], []
        for up, stage, skip in zip(
            self.upsample_layers, self.conv_blocks_localization, reversed(features[:-1]), strict=True
        ):
            x = stage(torch.cat((up(x, skip.shape[2:]), skip), dim=1))
            decoded.append(x)
        return decoded[::-1]
