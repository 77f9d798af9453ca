"""Heads on frozen features: a linear layer, attention over the deepest grid, votes of neighbours."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.heads.whole_scan import WholeScanModel


class LinearProbe(WholeScanModel):
    """A logistic regression on pooled features; its standardisation is folded into the weights."""

    def __init__(self, encoder: Encoder, n_classes: int) -> None:
        super().__init__(encoder)
        self.linear = nn.Linear(encoder.pooled_dim, n_classes)

    def head(self, features: Tensor) -> Tensor:
        """The deepest features (B, F, d, h, w) -> logits (B, n_classes)."""
        return self.linear(features.mean((2, 3, 4)))

    def set(self, weights: npt.NDArray, bias: npt.NDArray) -> None:
        """weights (K, F), bias (K,)."""
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weights))
            self.linear.bias.copy_(torch.from_numpy(bias))


class AttentiveProbe(WholeScanModel):
    """One learned query attends over the deepest grid of features, then a linear layer (Bardes et al. 2024,
    arXiv 2404.08471, section 3.3)."""

    def __init__(self, encoder: Encoder, n_classes: int, heads: int) -> None:
        super().__init__(encoder)
        width = encoder.pooled_dim
        heads = max(n for n in range(1, heads + 1) if width % n == 0)
        self.tokens = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def head(self, features: Tensor) -> Tensor:
        """Deepest features (B, F, d, h, w) -> logits (B, n_classes)."""
        tokens = self.tokens(features.flatten(2).transpose(1, 2))  # b n f
        pooled, _ = self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
        return self.linear(self.norm(pooled[:, 0]))


class NeighbourProbe(WholeScanModel):
    """Votes of the most similar training scans, weighed by exp(cosine / temperature) (Wu et al. 2018, section 3.4).

    The training scans are buffers: as many as the weights that are loaded have. `backbones.probes.classification`
    says why its `nearest`, the same formula in float64, is not used here.
    """

    rows: Tensor
    votes: Tensor

    def __init__(self, encoder: Encoder, n_classes: int, neighbours: int, temperature: float) -> None:
        super().__init__(encoder)
        self.n_classes, self.neighbours, self.temperature = n_classes, neighbours, temperature
        self.register_buffer("rows", torch.zeros(0, encoder.pooled_dim))
        self.register_buffer("votes", torch.zeros(0, n_classes))

    def set(self, rows: Tensor, labels: Tensor) -> None:
        """Features (N, F) of the training scans and their classes (N,)."""
        self.rows = F.normalize(rows.float(), dim=1)
        self.votes = F.one_hot(labels, self.n_classes).float()

    def head(self, features: Tensor) -> Tensor:
        """The deepest features -> logarithms of the shares of votes (B, n_classes); a class without a vote has -30."""
        similar = F.normalize(features.float().mean((2, 3, 4)), dim=1) @ self.rows.T  # b n
        values, places = similar.topk(min(self.neighbours, len(self.rows)), dim=1)
        weights = ((values - 1) / self.temperature).softmax(1)
        shares = (weights[..., None] * self.votes[places]).sum(1)
        return shares.clamp_min(np.exp(-30.0)).log()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        for name in ("rows", "votes"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict[prefix + name].clone())
        super()._load_from_state_dict(state_dict, prefix, *others)
