"""One number from the pooled features."""

from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.heads.classification import ClassificationModel


class RegressionModel(ClassificationModel):
    """The classification head with one output: the standardised target, 0 (its mean) at the start."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B,) in standard deviations from the mean of the training cases."""
        return super().forward(x).squeeze(1)
