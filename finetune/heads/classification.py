"""A linear layer on the pooled features."""

from collections.abc import Iterator

from torch import Tensor, nn

from scanforge.backbones.protocol import Encoder
from scanforge.finetune.tasks.adapter import TaskModel


class ClassificationModel(TaskModel):
    """Encoder, mean over space, LayerNorm, linear layer."""

    def __init__(self, encoder: Encoder, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm: nn.Module = nn.LayerNorm(encoder.pooled_dim)
        self.linear = nn.Linear(encoder.pooled_dim, n_classes)
        # Every class equally likely at the start, whatever the features are.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> logits (B, n_classes)."""
        return self.head(self.encoder(x)[-1])

    def head(self, features: Tensor) -> Tensor:
        """The deepest features (B, F, d, h, w) -> logits (B, n_classes)."""
        return self.linear(self.norm(features.mean((2, 3, 4))))

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """All but norm and linear."""
        return self.encoder.parameters()
