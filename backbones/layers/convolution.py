"""Convolutions that run on scans of depth 1 as 2D ones, with the norm and the activation of nnU-Net's networks.

A 3x3x3 kernel padded on a depth of 1 meets only zeros outside its centre slice, so `F.conv2d` with that slice is the
same function at a third of the cost.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.packed import Walk
from scanfoundry.configs.geometry import Size3D

LEAK = 0.01


def half_on_cpu(x: Tensor) -> bool:
    """Whether convolutions of x run in bfloat16 on a CPU, where oneDNN has errors."""
    return x.device.type == "cpu" and (x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))


class DepthFreeConv3d(nn.Conv3d):
    """A 3D convolution of odd kernel and same padding that runs as a 2D one where the depth is 1."""

    def forward(self, x: Tensor, walk: Walk | None = None) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W'), or `walk(x)`; on depth 1 a depth stride has no effect."""
        if walk is not None:
            return walk(x)
        return self._past_errors(x) if half_on_cpu(x) else self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if x.shape[2] != 1:
            return super().forward(x)
        weight = self.weight[:, :, self.kernel_size[0] // 2]
        padding = cast(Size3D, self.padding)[1:]
        y = F.conv2d(x.squeeze(2), weight, self.bias, self.stride[1:], padding, groups=self.groups)
        return y.unsqueeze(2)

    def _past_errors(self, x: Tensor) -> Tensor:
        """The convolution, past two errors of oneDNN in bfloat16 (torch 2.13, CPU; `tests/backbones/test_layers.py`).

        A 3x3x3 kernel on depth 2 has gradients of left-over memory. A strided kernel that gives a single column has
        outputs or gradients of it. More zeros behind the scan change nothing else.
        """
        two = x.shape[2] == 2 and self.kernel_size[0] == 3
        column = x.shape[4] <= self.stride[2] and self.stride[2] > 1 and self.kernel_size[2] > 1
        if not (two or column):
            return self._convolve(x)
        depth, width = (-(-x.shape[axis] // self.stride[axis - 2]) for axis in (2, 4))
        behind = (0, self.stride[2] if column else 0, 0, 0, 0, 1 if two else 0)
        return self._convolve(F.pad(x, behind))[:, :, :depth, :, :width]


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
    """Convolution with same padding, then InstanceNorm and LeakyReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D', H', W')."""
        return F.leaky_relu(super().forward(x), LEAK, inplace=True)


class UpsampleLayer(nn.Module):
    """Nearest-neighbour up-sampling to the size of the skip, then a 1x1x1 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DepthFreeConv3d(channels, out_channels, 1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(B, channels, d, h, w) -> (B, out_channels, *size)."""
        # a 1x1x1 convolution commutes with nearest up-sampling: same values, fewer voxels to convolve
        return F.interpolate(self.conv(x), size=size, mode="nearest")


def init_he(modules: Iterable[nn.Module]) -> None:
    """Kaiming normal for LeakyReLU(0.01) on every convolution, zero biases (STU-Net v1)."""
    for module in modules:
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=LEAK)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
