"""A backbone's own decoder where it has one, and a light one for a single coarse level."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.layers.segmentation import Part, SegmentationNetwork
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D
from scanfoundry.finetune.task import TaskModel

WIDTH, SKIP = 64, 16


class SegmentationModel(TaskModel):
    """Logits of every voxel; a list of resolutions, full first, while training."""

    def __init__(self, encoder: Encoder, n_labels: int, is_2d: bool) -> None:
        super().__init__()
        own = encoder.decoder(n_labels)
        self.net: SegmentationNetwork = LightDecoder(encoder, n_labels, is_2d) if own is None else own

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, D, H, W) -> (B, n_labels, D, H, W), or in training the list of resolutions."""
        self.net.deep_supervision = self.training
        return self.net(x)

    def part_of(self, name: str) -> tuple[Part, str]:
        """As the network says."""
        return self.net.part_of(name.removeprefix("net."))

    def class_axis(self, name: str) -> int:
        """As the network says."""
        return self.net.class_axis(name)


class LightDecoder(SegmentationNetwork):
    """Doubles the coarsest feature grid step by step; each step sees the image at its resolution.

    The image comes in through one shallow convolution per step, because a ViT keeps no fine features (the role of
    the skips in UNETR, Hatamizadeh 2022, at a fraction of its cost).
    """

    head_names = ("out.",)

    def __init__(self, encoder: Encoder, n_labels: int, is_2d: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.deep_supervision = False
        self.scales = list(_doublings(encoder.feature_strides(is_2d)[-1]))
        kernel = (1, 3, 3) if is_2d else (3, 3, 3)
        self.project = nn.Conv3d(encoder.feature_channels[-1], WIDTH, 1)
        self.skips = nn.ModuleList(_block(encoder.in_channels, SKIP, kernel) for _ in self.scales)
        self.blocks = nn.ModuleList(_block(WIDTH + SKIP, WIDTH, kernel) for _ in self.scales)
        self.out = nn.Conv3d(WIDTH, n_labels, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, D, H, W) -> logits of the same size; with deep supervision a list of them alone."""
        y = self.project(self.encoder(x)[-1])
        for stride, skip, block in zip(self.scales, self.skips, self.blocks, strict=True):
            image = F.avg_pool3d(x, stride) if max(stride) > 1 else x
            y = F.interpolate(y, size=image.shape[2:], mode="trilinear", align_corners=False)
            y = block(torch.cat((y, skip(image)), dim=1))
        logits = self.out(y)
        return [logits] if self.deep_supervision else logits


def _doublings(stride: Size3D) -> Iterator[Size3D]:
    """Strides left after each step from the coarse grid down to the voxel; odd factors go in the last step."""
    while max(stride) > 1:
        d, h, w = (s // 2 if s % 2 == 0 else 1 for s in stride)
        stride = (d, h, w)
        yield stride


def _block(channels: int, out_channels: int, kernel: Size3D) -> nn.Sequential:
    d, h, w = (k // 2 for k in kernel)
    return nn.Sequential(
        DepthFreeConv3d(channels, out_channels, kernel, padding=(d, h, w)),
        nn.InstanceNorm3d(out_channels, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )
