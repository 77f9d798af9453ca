"""Encoders on visible blocks alone: their own weights and their own levels, walked on packed maps."""

from typing import cast

from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.layers.packed import Norm
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.convolution import packed_conv
from scanfoundry.pretrain.sparse.norm import packed_norm


class BlockLayers:
    """Layers on the packed maps (N, d, h, w, F) of some blocks (`backbones.layers.packed.PackedLayers`)."""

    def __init__(self, blocks: ActiveBlocks) -> None:
        self._blocks = blocks

    def conv(self, module: nn.Conv3d, x: Tensor) -> Tensor:
        """A convolution, which reads a block's visible neighbours and zeros where they are hidden."""
        return packed_conv(cast(DepthFreeConv3d, module), x, self._blocks)

    def norm(self, module: Norm, x: Tensor, slope: float = 1.0, residual: Tensor | None = None) -> Tensor:
        """A norm over the visible voxels of each scan, plus `residual`, then LeakyReLU(slope)."""
        return packed_norm(module, x, self._blocks, slope, residual)

    def pool(self, x: Tensor, stride: Size3D) -> Tensor:
        """Means over windows of the stride: blocks are whole windows, so that none reaches into a neighbour."""
        n, d, h, w, c = x.shape
        flat = self._blocks.grid[0] == d == 1
        step = (1, *stride[1:]) if flat else stride
        return x.reshape(n, d // step[0], step[0], h // step[1], step[1], w // step[2], step[2], c).mean(dim=(2, 4, 6))


def can_be_packed(encoder: Encoder) -> bool:
    """Whether an encoder can be computed on visible blocks alone."""
    return type(encoder).packed_levels is not Encoder.packed_levels


def packed_features(encoder: Encoder, voxels: Tensor, blocks: ActiveBlocks) -> list[Tensor]:
    """The feature maps of the visible blocks of (B, C, D, H, W), packed (N, d, h, w, F), finest level first.

    Equal to the encoder with everything hidden set to zero after every layer, and norms over visible voxels alone.
    """
    levels = encoder.packed_levels(BlockLayers(blocks))
    assert levels is not None, type(encoder).__name__
    x, features = blocks.pack(voxels), []
    for level in levels:
        x = level(x)
        features.append(x)
    return features
