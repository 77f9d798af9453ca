"""What every encoder offers to pre-training and fine-tuning."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.configs.base import Config
from scanfoundry.configs.geometry import Size3D

# Another computation with a module's weights: `module(x, walk)` gives `walk(x)`. Through the module's own call it gets
# what is attached to that: hooks, by which ZeRO 3 gathers weights and lets them go, and activation checkpointing.
Walk = Callable[[Tensor], Tensor]


class Encoder(nn.Module, ABC):
    """A backbone that turns scans (B, C, D, H, W) into feature maps; 2D is depth 1, on the same weights."""

    config: Config  # what `scanfoundry.backbones.registry.build` needs to make this encoder again
    in_channels: int
    feature_channels: tuple[int, ...]  # finest level first
    pooled_dim: int

    @abstractmethod
    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Voxels per feature voxel on each axis, from the input, finest level first."""

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, F, d, h, w) of the scans (B, C, D, H, W), finest level first."""

    @abstractmethod
    def pooled(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """One vector (B, pooled_dim) for each scan (B, C, D, H, W): the `masked_mean` of the deepest features.

        valid: (B, 1, D, H, W) bool, False on voxels that must not count (padding, defaced regions).
        """

    @abstractmethod
    def check_input(self, shape: Size3D) -> None:
        """Raise UserError, naming the size allowed, where scans of this (D, H, W) cannot be encoded."""

    def recomputable(self) -> Iterator[nn.Module]:
        """Blocks that activation checkpointing may compute twice, beside those that it knows (`pretrain.recompute`).

        None where a backbone does not say; one without any block is then refused.
        """
        return iter(())

    def size_divisor(self, is_2d: bool) -> Size3D:
        """Sizes (D, H, W) that are a multiple of this lose nothing at any level."""
        return self.feature_strides(is_2d)[-1]


def masked_mean(features: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over space (B, F) of features (B, F, d, h, w), each cell weighted by its share of valid voxels.

    valid: (B, 1, D, H, W) bool at the scan's own size, or None for the plain mean. Where all voxels of a scan are
    valid, or none is, this is its plain mean too. A grid that does not divide the scan is shared out evenly.
    """
    if valid is None:
        return features.mean(dim=(2, 3, 4))
    wide = torch.promote_types(features.dtype, torch.float32)  # a share of 32^3 voxels needs more than bfloat16
    share = F.adaptive_avg_pool3d(valid.to(wide), (features.shape[2], features.shape[3], features.shape[4]))
    share = torch.where(share.flatten(1).any(dim=1).view(-1, 1, 1, 1, 1), share, 1.0)
    mean = (features.to(wide) * share).mean(dim=(2, 3, 4)) / share.mean(dim=(2, 3, 4))
    return mean.to(features.dtype)
