"""MedNeXt (Roy et al. 2023, arXiv 2303.09975): a ConvNeXt-like U-Net, with the original's layout and key names.

The contracting path is here, the whole network in `mednext_decoder.py`. As in STU-Net, a scan of depth 1 runs the
same 3D weights as a 2D network.
"""

from typing import Literal

from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder, Walk, masked_mean
from scanfoundry.backbones.stunet import DepthFreeConv3d, check_normalisable
from scanfoundry.configs.base import Config
from scanfoundry.configs.geometry import Size3D

WIDTH, LEVELS = 32, 5
# Expansion ratios and blocks of the nine stages: enc_block_0..3, bottleneck, dec_block_3..0.
RATIOS = {
    "S": (2, 2, 2, 2, 2, 2, 2, 2, 2),
    "B": (2, 3, 4, 4, 4, 4, 4, 3, 2),
    "M": (2, 3, 4, 4, 4, 4, 4, 3, 2),
    "L": (3, 4, 8, 8, 8, 8, 8, 4, 3),
}
BLOCKS = {
    "S": (2, 2, 2, 2, 2, 2, 2, 2, 2),
    "B": (2, 2, 2, 2, 2, 2, 2, 2, 2),
    "M": (3, 4, 4, 4, 4, 4, 4, 4, 3),
    "L": (3, 4, 8, 8, 8, 8, 8, 4, 3),
}


class MedNeXtConfig(Config):
    """Size and depthwise kernel of a MedNeXt; every down-sampling halves every axis."""

    name: Literal["mednext"] = "mednext"
    size: Literal["S", "B", "M", "L"] = "B"
    kernel: Literal[3, 5] = 3
    in_channels: int = 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Feature channels of the five levels, finest first."""
        return tuple(WIDTH * 2**level for level in range(LEVELS))

    @property
    def ratios(self) -> tuple[int, ...]:
        """Expansion ratios of the nine stages, along the network."""
        return RATIOS[self.size]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks in each of the nine stages, along the network."""
        return BLOCKS[self.size]


class Expansion(nn.Module):
    """What follows the depthwise convolution of every block: norm, C -> ratio * C, GELU, ratio * C -> C'."""

    def __init__(self, channels: int, out_channels: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels, channels)
        self.conv2 = DepthFreeConv3d(channels, ratio * channels, 1)
        self.act = nn.GELU()
        self.conv3 = DepthFreeConv3d(ratio * channels, out_channels, 1)

    def expand(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D, H, W)."""
        return self.conv3(self.act(self.conv2(self.norm(x))))


class MedNeXtBlock(Expansion):
    """A depthwise convolution and its expansion, plus the input."""

    def __init__(self, channels: int, out_channels: int, ratio: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, ratio)
        self.conv1 = DepthFreeConv3d(channels, channels, kernel, stride, kernel // 2, groups=channels)

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, C, D, H, W) -> the same shape, or `walk(x)`."""
        return x + self.expand(self.conv1(x)) if walk is None else walk(x)


class MedNeXtDownBlock(MedNeXtBlock):
    """The same at stride 2, plus the input through a 1x1x1 convolution of stride 2."""

    def __init__(self, channels: int, out_channels: int, ratio: int, kernel: int) -> None:
        super().__init__(channels, out_channels, ratio, kernel, stride=2)
        self.res_conv = DepthFreeConv3d(channels, out_channels, 1, 2)

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, C, D, H, W) -> (B, C', ceil(D / 2), ceil(H / 2), ceil(W / 2)), or `walk(x)`."""
        return self.expand(self.conv1(x)) + self.res_conv(x) if walk is None else walk(x)


def block_stage(channels: int, count: int, ratio: int, kernel: int) -> nn.Sequential:
    """`count` blocks that keep channels and size."""
    return nn.Sequential(*(MedNeXtBlock(channels, channels, ratio, kernel) for _ in range(count)))


Stages = list[tuple[nn.Sequential, MedNeXtDownBlock | None]]


class MedNeXtEncoder(Encoder):
    """The contracting path: five levels, the finest at full resolution."""

    config: MedNeXtConfig
    stem: DepthFreeConv3d

    def __init__(self, config: MedNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.feature_channels = channels = config.channels
        self.pooled_dim = channels[-1]
        self.stem = DepthFreeConv3d(config.in_channels, WIDTH, 1)
        for level in range(LEVELS - 1):
            count, ratio, below = config.blocks[level], config.ratios[level], config.ratios[level + 1]
            self.add_module(f"enc_block_{level}", block_stage(channels[level], count, ratio, config.kernel))
            down = MedNeXtDownBlock(channels[level], channels[level + 1], below, config.kernel)
            self.add_module(f"down_{level}", down)
        deepest = LEVELS - 1
        self.bottleneck = block_stage(channels[-1], config.blocks[deepest], config.ratios[deepest], config.kernel)

    def stages(self) -> tuple[DepthFreeConv3d, Stages]:
        """The stem, and (blocks, the down-sampling after them) of each level, finest first; None after the last."""
        return encoder_stages(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five feature maps (B, F, d, h, w) of the scans (B, C, D, H, W), full resolution first."""
        return encoder_features(self, x)

    def pooled(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`masked_mean` of the deepest level: (B, pooled_dim)."""
        return masked_mean(self.forward(x)[-1], valid)

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Cumulative strides (D, H, W) of the five levels; the depth stays 1 in 2D."""
        return tuple((1 if is_2d else 2**level, 2**level, 2**level) for level in range(LEVELS))

    def check_input(self, shape: Size3D) -> None:
        """Refuse sizes that leave one voxel at the deepest level, which has no variance to normalise by."""
        total = self.feature_strides(is_2d=shape[0] == 1)[-1]
        check_normalisable(shape, total, "MedNeXt", "take a larger crop")


def encoder_stages(network: nn.Module) -> tuple[DepthFreeConv3d, Stages]:
    """`MedNeXtEncoder.stages` of any network that has its modules under their names."""
    parts = dict(network.named_children())
    stages: Stages = [(parts[f"enc_block_{i}"], parts[f"down_{i}"]) for i in range(LEVELS - 1)]  # type: ignore[misc]
    return parts["stem"], [*stages, (parts["bottleneck"], None)]  # type: ignore[return-value, list-item]


def encoder_features(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs of the five stages in turn, finest first."""
    stem, stages = encoder_stages(network)
    x, features = stem(x), []
    for blocks, down in stages:
        features.append(blocks(x))
        if down is not None:
            x = down(features[-1])
    return features
