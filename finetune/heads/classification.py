"""A linear layer on the pooled features."""

import torch
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.heads.whole_scan import WholeScanModel


class ClassificationModel(WholeScanModel):
    """Encoder, mean and maximum over space, LayerNorm of each, linear layer.

    The mean alone tells little of what an InstanceNorm gives: of a fresh STU-Net and shape masks it varies between
    scans a twelfth as much as between channels, the maximum two fifths, and twelve scans took 22 steps to learn by
    heart in place of 8 (measured, benchmarks/results/finetuning.md). The maximum is what a small lesion stands out by.
    """

    def __init__(self, encoder: Encoder, n_classes: int) -> None:
        super().__init__(encoder)
        self.norm = nn.GroupNorm(2, 2 * encoder.pooled_dim)  # of vectors: a LayerNorm of each half
        self.linear = nn.Linear(2 * encoder.pooled_dim, n_classes)
        # Every class equally likely at the start, whatever the features are.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def head(self, features: Tensor) -> Tensor:
        """The deepest features (B, F, d, h, w) -> logits (B, n_classes)."""
        pooled = torch.cat((features.mean((2, 3, 4)), features.amax((2, 3, 4))), 1)
        return self.linear(self.norm(pooled))
