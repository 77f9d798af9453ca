"""Losses of fine-tuning: tensors in, scalar out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean soft Dice of the foreground classes over the whole batch (Milletari 2016, without squares).

    logits (B, K, D, H, W), labels (B, D, H, W) integers. Sums run over the batch too: a class absent from one
    patch of a small batch then does not pull the loss about.
    """
    probabilities = logits.float().softmax(1)[:, 1:]
    truth = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    axes = (0, 2, 3, 4)
    both = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    return 1 - ((2 * both + SMOOTH) / (total + SMOOTH)).mean()


def dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy, equal parts (Isensee et al. 2021)."""
    return soft_dice(logits, labels) + F.cross_entropy(logits.float(), labels.long())


def deep_supervision(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """`dice_ce` at each resolution, weights 1/2^i normalised, the coarsest 0 where there are several (nnU-Net)."""
    weights = [0.5**i for i in range(len(outputs))]
    if len(weights) > 1:
        weights[-1] = 0.0
    total = torch.zeros((), device=labels.device)
    for weight, logits in zip(weights, outputs, strict=True):
        if weight:
            coarse = F.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0]
            total = total + weight / sum(weights) * dice_ce(logits, coarse)
    return total
