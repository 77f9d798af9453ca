"""A U-shaped decoder for any encoder of several levels (Ronneberger et al. 2015, arXiv 1505.04597)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.resenc import ConvNormAct
from scanfoundry.backbones.stunet import DepthFreeConv3d, UpsampleLayer, init_he


class UDecoder(nn.Module):
    """Up-sampling to the next finer level, its features beside, one convolution; as wide as nnU-Net's for ResEnc.

    nnU-Net up-samples by transposed convolutions, which double. Here it is nearest neighbours and a 1x1x1
    convolution, as in STU-Net, which fits any size: odd ones, and depth 1.
    """

    def __init__(self, encoder: Encoder, n_labels: int, deep_supervision: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.deep_supervision = deep_supervision
        pairs = list(pairwise(encoder.feature_channels[::-1]))  # (from, to), deepest first
        self.ups = nn.ModuleList(UpsampleLayer(i, o) for i, o in pairs)
        self.blocks = nn.ModuleList(ConvNormAct(2 * o, o) for _, o in pairs)
        self.heads = nn.ModuleList(DepthFreeConv3d(o, n_labels, 1) for _, o in pairs)
        for part in (self.ups, self.blocks, self.heads):
            init_he(part.modules())

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, n_labels, D, H, W); with deep supervision those of all levels but the deepest, full first."""
        features = self.encoder(x)
        y, decoded = features[-1], []
        for up, block, skip in zip(self.ups, self.blocks, reversed(features[:-1]), strict=True):
            y = block(torch.cat((up(y, skip.shape[2:]), skip), dim=1))
            decoded.append(y)
        if not self.deep_supervision:
            return self.heads[-1](y)
        return [head(y) for head, y in zip(reversed(self.heads), reversed(decoded), strict=True)]
