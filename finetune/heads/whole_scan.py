"""What all heads share that see a scan as a whole: an encoder, and something on its deepest features."""

from abc import abstractmethod

from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.task import TaskModel


class WholeScanModel(TaskModel):
    """An encoder under a head; cached features of a frozen encoder go straight into the head."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> what the head gives."""
        return self.head(self.encoder(x)[-1])

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """The deepest features (B, F, d, h, w) -> one row (B, n_outputs) for each scan."""
