"""What every encoder offers to pre-training and fine-tuning."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from scanforge.configs.base import Config

Triple = tuple[int, int, int]  # (D, H, W)


class Encoder(nn.Module, ABC):
    """A backbone that turns scans (B, C, D, H, W) into feature maps; 2D is depth 1, on the same weights."""

    config: Config  # what `scanforge.backbones.registry.build` needs to make this encoder again
    in_channels: int
    feature_channels: tuple[int, ...]  # finest level first
    pooled_dim: int

    @abstractmethod
    def feature_strides(self, is_2d: bool) -> tuple[Triple, ...]:
        """Voxels per feature voxel on each axis, from the input, finest level first."""

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, F, d, h, w) of the scans (B, C, D, H, W), finest level first."""

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """One vector (B, pooled_dim) for each scan (B, C, D, H, W)."""

    @abstractmethod
    def check_input(self, shape: Triple) -> None:
        """Raise UserError, naming the size allowed, where scans of this (D, H, W) cannot be encoded."""

    def size_divisor(self, is_2d: bool) -> Triple:
        """Sizes (D, H, W) that are a multiple of this lose nothing at any level."""
        return self.feature_strides(is_2d)[-1]
