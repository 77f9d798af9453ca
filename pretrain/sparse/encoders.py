"""Contracting paths on visible blocks: the encoder's own weights, walked on packed maps."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

from torch import Tensor, nn

from scanfoundry.backbones.mednext import MedNeXtBlock, MedNeXtDownBlock, MedNeXtEncoder
from scanfoundry.backbones.protocol import Encoder, Walk
from scanfoundry.backbones.resenc import BasicBlockD, ConvNorm, ResEncEncoder, ResidualStage, ShortcutPool
from scanfoundry.backbones.stunet import LEAK, BasicResBlock, STUNetEncoder
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.convolution import packed_conv
from scanfoundry.pretrain.sparse.norm import packed_norm


def packed_features(encoder: Encoder, voxels: Tensor, blocks: ActiveBlocks) -> list[Tensor]:
    """The feature maps of the visible blocks of (B, C, D, H, W), packed (N, d, h, w, F), finest level first.

    Equal to the encoder with everything hidden set to zero after every layer, and norms over visible voxels alone.
    """
    x, features = blocks.pack(voxels), []
    for level in LEVELS[type(encoder)](encoder, blocks):
        x = level(x)
        features.append(x)
    return features


def stunet_levels(encoder: STUNetEncoder, blocks: ActiveBlocks) -> list[Walk]:
    """The six stages."""
    stages = cast(Iterable[Iterable[BasicResBlock]], encoder.conv_blocks_context)
    return [_chain([_through(block, _residual_block, blocks) for block in stage]) for stage in stages]


def _residual_block(block: BasicResBlock, x: Tensor, blocks: ActiveBlocks) -> Tensor:
    """`BasicResBlock.forward`."""
    y = packed_norm(block.norm1, packed_conv(block.conv1, x, blocks), blocks, LEAK)
    shortcut = x if block.conv3 is None else packed_conv(block.conv3, x, blocks)
    return packed_norm(block.norm2, packed_conv(block.conv2, y, blocks), blocks, LEAK, shortcut)


def mednext_levels(encoder: MedNeXtEncoder, blocks: ActiveBlocks) -> list[Walk]:
    """The stem or a down-sampling, then the blocks of each level."""
    stem, stages = encoder.stages()
    first: Walk = partial(packed_conv, stem, blocks=blocks)
    levels = []
    for stage, down in stages:
        walk = [_through(block, _mednext_block, blocks) for block in stage]
        levels.append(_chain([first, *walk]))
        if down is not None:
            first = _through(down, _mednext_down_block, blocks)
    return levels


def _mednext_block(block: MedNeXtBlock, x: Tensor, blocks: ActiveBlocks) -> Tensor:
    """`MedNeXtBlock.forward`."""
    return x + _expand(block, x, blocks)


def _mednext_down_block(block: MedNeXtDownBlock, x: Tensor, blocks: ActiveBlocks) -> Tensor:
    """`MedNeXtDownBlock.forward`."""
    return _expand(block, x, blocks) + packed_conv(block.res_conv, x, blocks)


def _expand(block: MedNeXtBlock, x: Tensor, blocks: ActiveBlocks) -> Tensor:
    y = packed_norm(block.norm, packed_conv(block.conv1, x, blocks), blocks)
    return packed_conv(block.conv3, block.act(packed_conv(block.conv2, y, blocks)), blocks)


def resenc_levels(encoder: ResEncEncoder, blocks: ActiveBlocks) -> list[Walk]:
    """The stem and the first stage, then the other stages."""
    stem = cast(ConvNorm, encoder.stem.convs[0])
    before: list[Walk] = [partial(_conv_norm, stem, blocks=blocks, slope=LEAK)]
    levels = []
    for stage in encoder.stages:
        walk = cast(Iterable[BasicBlockD], cast(ResidualStage, stage).blocks)
        levels.append(_chain([*before, *(_through(block, _basic_block, blocks) for block in walk)]))
        before = []
    return levels


def _basic_block(block: BasicBlockD, x: Tensor, blocks: ActiveBlocks) -> Tensor:
    """`BasicBlockD.forward`."""
    y = packed_conv(block.conv2.conv, _conv_norm(block.conv1, x, blocks, LEAK), blocks)
    for part in block.skip:
        x = (
            _pool(x, part.stride, blocks)
            if isinstance(part, ShortcutPool)
            else _conv_norm(cast(ConvNorm, part), x, blocks)
        )
    return packed_norm(block.conv2.norm, y, blocks, LEAK, x)


def _conv_norm(part: ConvNorm, x: Tensor, blocks: ActiveBlocks, slope: float = 1.0) -> Tensor:
    return packed_norm(part.norm, packed_conv(part.conv, x, blocks), blocks, slope)


def _pool(x: Tensor, stride: Size3D, blocks: ActiveBlocks) -> Tensor:
    """Means over windows of the stride: blocks are whole windows, so that none reaches into a neighbour."""
    n, d, h, w, c = x.shape
    flat = blocks.grid[0] == d == 1
    step = (1, *stride[1:]) if flat else stride
    return x.reshape(n, d // step[0], step[0], h // step[1], step[1], w // step[2], step[2], c).mean(dim=(2, 4, 6))


def _through(block: nn.Module, walk: Callable[..., Tensor], blocks: ActiveBlocks) -> Walk:
    """`walk(block, x, blocks)` of x, through the block's own call."""
    return lambda x: block(x, partial(walk, block, blocks=blocks))


def _chain(steps: list[Walk]) -> Walk:
    def walk(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return walk


LEVELS: dict[type[Encoder], Callable[..., list[Walk]]] = {
    STUNetEncoder: stunet_levels,
    MedNeXtEncoder: mednext_levels,
    ResEncEncoder: resenc_levels,
}
