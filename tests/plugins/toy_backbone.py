"""A backbone from outside of the project: two convolutions, which the block-sparse engine can walk."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import ConvNorm, DepthFreeConv3d
from scanfoundry.backbones.layers.packed import PackedLayers, Walk
from scanfoundry.backbones.protocol import Encoder, EncoderConfig, Family
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D


class ToyNetConfig(EncoderConfig):
    """Features of the first level; the second has twice as many."""

    family: ClassVar[Family] = "convolutional"
    name: Literal["toy_net"] = "toy_net"
    in_channels: int = 1
    width: int = 4

    def build(self) -> "ToyNetEncoder":
        """An encoder with fresh weights."""
        return ToyNetEncoder(self)


class ToyNetEncoder(Encoder):
    """A level at full resolution and one at half of it."""

    config: ToyNetConfig

    def __init__(self, config: ToyNetConfig) -> None:
        super().__init__()
        self.config, self.in_channels = config, config.in_channels
        self.feature_channels = (config.width, 2 * config.width)
        self.pooled_dim = self.feature_channels[-1]
        self.first = DepthFreeConv3d(config.in_channels, config.width, 3, padding=1)
        self.second = ConvNorm(config.width, 2 * config.width, stride=(2, 2, 2))

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """One and two voxels."""
        return (1, 1, 1), (1 if is_2d else 2, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Both levels."""
        fine = self.first(x).relu()
        return [fine, self.second(fine).relu()]

    def check_input(self, shape: Size3D) -> None:
        """Refuse what leaves one voxel to normalise."""
        if max(shape) < 3:
            raise UserError(f"a scan of {shape} is too small: allowed is 3 voxels or more along one axis")

    def block_modules(self) -> Iterator[nn.Module]:
        """The second convolution."""
        yield self.second

    def packed_levels(self, layers: PackedLayers) -> list[Walk]:
        """Both levels on visible blocks."""
        return [partial(self._fine, layers), partial(self._coarse, layers)]

    def _fine(self, layers: PackedLayers, x: Tensor) -> Tensor:
        return layers.conv(self.first, x).relu()

    def _coarse(self, layers: PackedLayers, x: Tensor) -> Tensor:
        return layers.norm(self.second.norm, layers.conv(self.second.conv, x)).relu()


PLUGINS = {"backbone": [ToyNetConfig]}
