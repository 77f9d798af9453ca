"""The contracting path of MedNeXt (Roy et al. 2023, arXiv 2303.09975), and its sizes."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.layers.levels import check_normalisable
from scanfoundry.backbones.layers.packed import PackedLayers, Walk, chain, through
from scanfoundry.backbones.mednext.blocks import (
    LEVELS,
    MedNeXtBlock,
    MedNeXtDownBlock,
    Stages,
    block_stage,
    encoder_features,
    encoder_stages,
)
from scanfoundry.backbones.mednext.decoder import MedNeXt
from scanfoundry.backbones.protocol import Encoder, EncoderConfig, Family
from scanfoundry.configs.geometry import Size3D

WIDTH = 32
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


class MedNeXtConfig(EncoderConfig):
    """Size and depthwise kernel of a MedNeXt; every down-sampling halves every axis."""

    family: ClassVar[Family] = "convolutional"
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

    def build(self) -> "MedNeXtEncoder":
        """An encoder with fresh weights."""
        return MedNeXtEncoder(self)


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
        self.stem = DepthFreeConv3d(config.in_channels, channels[0], 1)
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

    def block_modules(self) -> Iterator[nn.Module]:
        """The blocks of all levels, and the down-sampling ones between them."""
        for stage, down in self.stages()[1]:
            yield from stage
            if down is not None:
                yield down

    def decoder(self, num_classes: int) -> MedNeXt:
        """The MedNeXt of this encoder."""
        return MedNeXt(self, num_classes, deep_supervision=True)

    def packed_levels(self, layers: PackedLayers) -> list[Walk]:
        """The stem or a down-sampling, then the blocks of each level, on visible blocks."""
        stem, stages = self.stages()
        first: Walk = partial(layers.conv, stem)
        levels = []
        for stage, down in stages:
            blocks = cast(Iterable[MedNeXtBlock], stage)
            levels.append(chain([first, *(through(block, layers) for block in blocks)]))
            if down is not None:
                first = through(down, layers)
        return levels

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Cumulative strides (D, H, W) of the five levels; the depth stays 1 in 2D."""
        return tuple((1 if is_2d else 2**level, 2**level, 2**level) for level in range(LEVELS))

    def check_input(self, shape: Size3D) -> None:
        """Refuse sizes that leave one voxel at the deepest level, which has no variance to normalise by."""
        total = self.feature_strides(is_2d=shape[0] == 1)[-1]
        check_normalisable(shape, total, "MedNeXt", "take a larger crop")
