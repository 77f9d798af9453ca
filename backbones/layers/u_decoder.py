"""A U-shaped decoder for any encoder of several levels (Ronneberger et al. 2015, arXiv 1505.04597)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import ConvNormAct, DepthFreeConv3d, UpsampleLayer, init_he
from scanfoundry.backbones.layers.segmentation import UNet, decode_with_skips


class UDecoder(UNet):
    """Up-sampling to the next finer level, its features beside, one convolution; as wide as nnU-Net's for ResEnc.

    nnU-Net up-samples by transposed convolutions, which double. Here it is nearest neighbours and a 1x1x1
    convolution, as in STU-Net, which fits any size: odd ones, and depth 1.
    """

    head_names = ("heads.",)

    def __init__(
        self, encoder: nn.Module, channels: Sequence[int], num_classes: int, deep_supervision: bool = False
    ) -> None:
        """`channels` are those of the encoder's levels, finest first."""
        super().__init__()
        self.encoder = encoder
        self.deep_supervision = deep_supervision
        pairs = list(pairwise(channels[::-1]))  # (from, to), deepest first
        self.ups = nn.ModuleList(UpsampleLayer(i, o) for i, o in pairs)
        self.blocks = nn.ModuleList(ConvNormAct(2 * o, o) for _, o in pairs)
        self.heads = nn.ModuleList(DepthFreeConv3d(o, num_classes, 1) for _, o in pairs)
        for part in (self.ups, self.blocks, self.heads):
            init_he(part.modules())

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's feature maps, finest first."""
        return self.encoder(x)

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """The feature maps of all levels but the deepest, finest first, from the encoder's."""
        return decode_with_skips(self.ups, self.blocks, features)

    def block_modules(self) -> Iterator[nn.Module]:
        """The convolutions, deepest first."""
        return iter(self.blocks)

    def output_layers(self) -> list[nn.Module]:
        """The 1x1x1 convolutions, finest first."""
        return list(self.heads)[::-1]
