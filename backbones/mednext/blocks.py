"""Blocks of MedNeXt (Roy et al. 2023, arXiv 2303.09975), a ConvNeXt-like U-Net, and the order of its modules.

Layout and key names are the original's. As in STU-Net, a scan of depth 1 runs the same 3D weights as a 2D network.
"""

from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.layers.packed import PackedLayers, Walk

LEVELS = 5


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

    def packed_expand(self, x: Tensor, layers: PackedLayers) -> Tensor:
        """`expand` on packed maps (N, d, h, w, C) of visible blocks."""
        return layers.conv(self.conv3, self.act(layers.conv(self.conv2, layers.norm(self.norm, x))))


class MedNeXtBlock(Expansion):
    """A depthwise convolution and its expansion, plus the input."""

    def __init__(self, channels: int, out_channels: int, ratio: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, ratio)
        self.conv1 = DepthFreeConv3d(channels, channels, kernel, stride, kernel // 2, groups=channels)

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, C, D, H, W) -> the same shape, or `walk(x)`."""
        return x + self.expand(self.conv1(x)) if walk is None else walk(x)

    def packed(self, x: Tensor, layers: PackedLayers) -> Tensor:
        """`forward` on packed maps (N, d, h, w, C) of visible blocks."""
        return x + self.packed_expand(layers.conv(self.conv1, x), layers)


class MedNeXtDownBlock(MedNeXtBlock):
    """The same at stride 2, plus the input through a 1x1x1 convolution of stride 2."""

    def __init__(self, channels: int, out_channels: int, ratio: int, kernel: int) -> None:
        super().__init__(channels, out_channels, ratio, kernel, stride=2)
        self.res_conv = DepthFreeConv3d(channels, out_channels, 1, 2)

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, C, D, H, W) -> (B, C', ceil(D / 2), ceil(H / 2), ceil(W / 2)), or `walk(x)`."""
        return self.expand(self.conv1(x)) + self.res_conv(x) if walk is None else walk(x)

    def packed(self, x: Tensor, layers: PackedLayers) -> Tensor:
        """`forward` on packed maps (N, d, h, w, C) of visible blocks."""
        return self.packed_expand(layers.conv(self.conv1, x), layers) + layers.conv(self.res_conv, x)


def block_stage(channels: int, count: int, ratio: int, kernel: int) -> nn.Sequential:
    """`count` blocks that keep channels and size."""
    return nn.Sequential(*(MedNeXtBlock(channels, channels, ratio, kernel) for _ in range(count)))


Stages = list[tuple[nn.Sequential, MedNeXtDownBlock | None]]


def encoder_stages(network: nn.Module) -> tuple[DepthFreeConv3d, Stages]:
    """The stem, and (blocks, the down-sampling after them) of each level, finest first; None after the last.

    `network` is any that has the encoder's modules under their names.
    """
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
