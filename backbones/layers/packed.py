"""How a backbone tells the block-sparse engine to compute it, without knowing the engine.

The engine (`scanfoundry.pretrain.sparse`) keeps of a batch the visible blocks alone, as packed maps (N, d, h, w, F):
N blocks of all scans, features last. `PackedLayers` is what it can compute on them; `Encoder.packed_levels` says, in
these terms, what a backbone's levels are.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from scanfoundry.configs.geometry import Size3D

# Another computation with a module's weights: `module(x, walk)` gives `walk(x)`. Through the module's own call it gets
# what is attached to that: hooks, by which ZeRO 3 gathers weights and lets them go, and activation checkpointing.
Walk = Callable[[Tensor], Tensor]
Norm = nn.InstanceNorm3d | nn.GroupNorm


class PackedLayers(Protocol):
    """The layers that can be computed on packed maps (N, d, h, w, F), with the weights of the modules given."""

    def conv(self, module: nn.Conv3d, x: Tensor) -> Tensor:
        """A convolution with same padding, which reads a block's visible neighbours; a `DepthFreeConv3d`."""

    def norm(self, module: Norm, x: Tensor, slope: float = 1.0, residual: Tensor | None = None) -> Tensor:
        """A norm over the visible voxels of each scan, plus `residual`, then LeakyReLU(slope); 1 is the identity.

        A group norm must have as many groups as channels.
        """

    def pool(self, x: Tensor, stride: Size3D) -> Tensor:
        """Means over windows (D, H, W) of the stride."""


class PackedBlock(Protocol):
    """A module that can be walked: its `forward` takes a `Walk`, and `packed` is what `forward` computes."""

    def __call__(self, x: Tensor, walk: Walk | None = None) -> Tensor: ...

    def packed(self, x: Tensor, layers: PackedLayers) -> Tensor:
        """The module's forward pass on packed maps (N, d, h, w, F)."""


def through(block: PackedBlock, layers: PackedLayers) -> Walk:
    """The block's computation on packed maps, through the block's own call."""
    return lambda x: block(x, partial(block.packed, layers=layers))


def chain(steps: Iterable[Walk]) -> Walk:
    """One walk that makes all steps, in their order."""
    steps = list(steps)

    def walk(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return walk
