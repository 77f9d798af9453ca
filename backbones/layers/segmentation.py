"""What every network offers that segments with an encoder, and the U-shaped ones among them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn


class SegmentationNetwork(nn.Module, ABC):
    """An encoder, whose weights it shares, and a decoder that gives logits of every voxel."""

    deep_supervision: bool = False

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W) of the scans (B, C, D, H, W); with deep supervision a list, full size first.

        The coarser maps of deep supervision stay at their own resolution.
        """

    @abstractmethod
    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are the encoder's."""


class UNet(SegmentationNetwork):
    """A network whose decoder takes the feature maps of all levels of its encoder."""

    @abstractmethod
    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's feature maps (B, F, d, h, w) of the scans (B, C, D, H, W), finest first."""

    @abstractmethod
    def logits(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """What `forward` gives for scans of these features."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W) of the scans (B, C, D, H, W); with deep supervision a list, full size first.

        The coarser maps of deep supervision stay at their own resolution.
        """
        return self.logits(self.encode(x))
