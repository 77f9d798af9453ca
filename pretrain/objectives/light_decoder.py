"""SparK's light decoder (Tian et al. 2023) in 3D, which runs on depth 1 as a 2D network.

Group norm stands in for SparK's batch norm: batches of scans are small and alternate between 2D and 3D, so
that batch statistics would be noise, and would depend on how a batch is divided among processes.
"""

from collections.abc import Iterator
from math import gcd
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d, half_on_cpu
from scanfoundry.configs.geometry import Size3D

GROUPS = 8


class UpConv3d(nn.ConvTranspose3d):
    """Transposed convolution that multiplies each axis by its stride (kernel 4 for stride 2, 1 for 1).

    On a depth that stays 1 it is the mean of the depth slices that the 3D one would give.
    """

    def __init__(self, channels: int, stride: Size3D) -> None:
        kernel = [4 if step == 2 else 1 for step in stride]
        padding = [1 if step == 2 else 0 for step in stride]
        super().__init__(
            channels,
            channels,
            (kernel[0], kernel[1], kernel[2]),
            stride,
            (padding[0], padding[1], padding[2]),
        )

    def forward(self, x: Tensor, flat: bool = False) -> Tensor:  # type: ignore[override]
        """(B, C, d, h, w) -> (B, C, d * stride, ...); flat: the depth is 1 and stays 1."""
        if not flat:
            if x.shape[4] == 1 and self.stride[2] == 2 and half_on_cpu(x):
                # The gradient of a single column is left-over memory: see `DepthFreeConv3d`, whose strided
                # convolution it is. A column of zeros beside it adds nothing to the two that it becomes.
                return super().forward(F.pad(x, (0, 1)))[..., :2]
            return super().forward(x)
        weight = self.weight[:, :, 1:3].mean(dim=2) if self.stride[0] == 2 else self.weight[:, :, 0]
        padding = cast(Size3D, self.padding)[1:]
        return F.conv_transpose2d(x.squeeze(2), weight, self.bias, self.stride[1:], padding).unsqueeze(2)


class UpBlock(nn.Module):
    """Up-sample, then conv-norm-ReLU6 and conv-norm (SparK's `UNetBlock2x`)."""

    def __init__(self, channels: int, out_channels: int, stride: Size3D) -> None:
        super().__init__()
        self.up = UpConv3d(channels, stride)
        self.conv1 = DepthFreeConv3d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(gcd(GROUPS, channels), channels)
        self.conv2 = DepthFreeConv3d(channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(gcd(GROUPS, out_channels), out_channels)

    def forward(self, x: Tensor, flat: bool) -> Tensor:
        """(B, channels, d, h, w) -> (B, out_channels, ...) at the next finer level."""
        x = F.relu6(self.norm1(self.conv1(self.up(x, flat))), inplace=True)
        return self.norm2(self.conv2(x))


class LightDecoder(nn.Module):
    """From the deepest level to the voxels, adding a skip at each of the levels given."""

    def __init__(self, width: int, strides: tuple[Size3D, ...], out_channels: int) -> None:
        super().__init__()
        self.widths = [width >> level for level in range(len(strides) + 1)]  # deepest first
        self.blocks = nn.ModuleList(
            UpBlock(self.widths[level], self.widths[level + 1], stride)
            for level, stride in enumerate(reversed(strides))
        )
        self.head = DepthFreeConv3d(self.widths[-1], out_channels, 1)
        self.apply(init_decoder)

    def forward(self, skips: list[Tensor], flat: bool) -> Tensor:
        """Skips, deepest first, each (B, widths[i], d, h, w) -> voxels (B, out_channels, D, H, W)."""
        x = skips[0]
        for level, block in enumerate(self.blocks):
            if 0 < level < len(skips):
                x = x + skips[level]
            x = block(x, flat)
        return self.head(x)

    def block_modules(self) -> Iterator[nn.Module]:
        """The up-sampling blocks, deepest first, for activation checkpointing."""
        return iter(self.blocks)


def init_decoder(module: nn.Module) -> None:
    """SparK's initialisation: truncated normal for convolutions, Kaiming (fan out) for transposed ones."""
    if isinstance(module, nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
