"""The whole MedNeXt (Roy et al. 2023, arXiv 2303.09975): encoder, decoder with sum skips, five outputs."""

from collections.abc import Iterator
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.segmentation import UNet
from scanfoundry.backbones.mednext.blocks import LEVELS, Expansion, block_stage, encoder_features
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D


class Sizes(Protocol):
    """What a `MedNeXtConfig` says of the nine stages and five levels of the network."""

    kernel: int

    @property
    def channels(self) -> tuple[int, ...]:
        """Feature channels of the five levels, finest first."""

    @property
    def ratios(self) -> tuple[int, ...]:
        """Expansion ratios of the nine stages, along the network."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks in each of the nine stages, along the network."""


class DepthFreeConvTranspose3d(nn.ConvTranspose3d):
    """A transposed 3D convolution of odd kernel k and padding k // 2 that runs as a 2D one where the depth is 1."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W'), an axis n becoming stride * (n - 1) + 1; depth 1 stays 1."""
        if x.shape[2] != 1:
            return super().forward(x, output_size)
        weight = self.weight[:, :, self.kernel_size[0] // 2]
        stride, padding = self.stride[1:], cast(Size3D, self.padding)[1:]
        return F.conv_transpose2d(x.squeeze(2), weight, self.bias, stride, padding, groups=self.groups).unsqueeze(2)


class MedNeXtUpBlock(Expansion):
    """A transposed depthwise convolution of stride 2 and its expansion, plus the input through a 1x1x1 one.

    Both make 2n - 1 voxels out of n. The original puts one plane of zeros before each axis, which gives 2n; here it
    is put only where the skip has 2n, so that odd sizes and a depth of 1 fit too. On even sizes it is the original.
    """

    def __init__(self, channels: int, out_channels: int, ratio: int, kernel: int) -> None:
        super().__init__(channels, out_channels, ratio)
        self.conv1 = DepthFreeConvTranspose3d(channels, channels, kernel, 2, kernel // 2, groups=channels)
        self.res_conv = DepthFreeConvTranspose3d(channels, out_channels, 1, 2)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(B, C, d, h, w) -> (B, C', *size), where size is 2n or 2n - 1 on each axis of n."""
        y = self.expand(self.conv1(x)) + self.res_conv(x)
        pad = [amount for axis in (2, 1, 0) for amount in (size[axis] - y.shape[axis + 2], 0)]
        return F.pad(y, pad)


class OutBlock(nn.Module):
    """Logits from features: a 1x1x1 transposed convolution, which is how the original stores it."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv_out = nn.ConvTranspose3d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, num_classes, D, H, W)."""
        return self.conv_out(x)


class MedNeXt(UNet):
    """The original's modules under its names; shares the encoder's weights. Any size that the encoder takes.

    All five output blocks exist, as in every network that the authors train; `deep_supervision` says what `forward`
    returns. `dummy_tensor` (checkpointing in the original) is kept so that whole state dicts of either load.
    """

    encoder_names, head_names = ("stem.", "enc_block_", "down_", "bottleneck."), ("out_",)
    dummy_tensor: Tensor

    def __init__(self, encoder: Encoder, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        self.config = encoder.config
        config = cast(Sizes, encoder.config)
        self.deep_supervision = deep_supervision
        for name, part in encoder.named_children():
            self.add_module(name, part)
        channels = config.channels
        for level in reversed(range(LEVELS - 1)):
            stage = 2 * (LEVELS - 1) - level  # of the nine
            count, ratio = config.blocks[stage], config.ratios[stage]
            up = MedNeXtUpBlock(channels[level + 1], channels[level], ratio, config.kernel)
            self.add_module(f"up_{level}", up)
            self.add_module(f"dec_block_{level}", block_stage(channels[level], count, ratio, config.kernel))
        for level in range(LEVELS):
            self.add_module(f"out_{level}", OutBlock(channels[level], num_classes))
        self.register_buffer("dummy_tensor", torch.ones(1))  # a parameter would never get a gradient

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's five feature maps, finest first."""
        return encoder_features(self, x)

    def block_modules(self) -> Iterator[nn.Module]:
        """The up-sampling and the other blocks of the decoder, deepest first."""
        for level in reversed(range(LEVELS - 1)):
            yield self.get_submodule(f"up_{level}")
            yield from cast(nn.Sequential, self.get_submodule(f"dec_block_{level}"))

    def output_layers(self) -> list[nn.Module]:
        """The five output blocks, full resolution first."""
        return [self.get_submodule(f"out_{level}") for level in range(LEVELS)]

    def class_axis(self, name: str) -> int:
        """Of transposed convolutions' weights the second."""
        return 1 if name.endswith(".weight") else 0

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """Features of the five levels after the decoder, full resolution first; the deepest is the encoder's own."""
        decoded = [features[-1]]
        for level in reversed(range(LEVELS - 1)):
            skip = features[level]
            up, blocks = self.get_submodule(f"up_{level}"), self.get_submodule(f"dec_block_{level}")
            decoded.append(blocks(skip + up(decoded[-1], skip.shape[2:])))
        return decoded[::-1]
