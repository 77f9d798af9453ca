"""Losses of fine-tuning: tensors in, scalar out. Nothing is lost to autocast: half precision is raised to float32."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.loss import LossConfig

SMOOTH = 1e-5
SURE = 1e-8  # 1 - p is not taken for less: powers below 1 have no slope at 0
GAMMA = {"focal": 2.0, "dual_focal": 5.0}


def class_weights(counts: Sequence[int], rule: str | list[float], beta: float = 0.999) -> list[float] | None:
    """Weights of the classes, mean 1, from how many training cases (or voxels) each has; None for 'none'.

    'inverse': 1 / n. 'inverse_sqrt': 1 / sqrt(n), for counts of voxels, where 1 / n would let a few voxels rule.
    'effective': (1 - beta) / (1 - beta^n) (Cui et al. 2019). A class that does not occur weighs 1: no target
    has it. A list is taken as it is; UserError where its length is not that of the classes.
    """
    if isinstance(rule, list):
        if len(rule) != len(counts):
            raise UserError(f"loss.class_weights has {len(rule)} values, there are {len(counts)} classes")
        return rule
    if rule == "none":
        return None
    n = torch.tensor(counts, dtype=torch.float64)
    raw = {"inverse": 1 / n, "inverse_sqrt": n.rsqrt(), "effective": (1 - beta) / (1 - beta**n)}[rule]
    present = n > 0
    scaled = torch.where(present, raw / raw[present].mean(), 1.0)
    return [float(weight) for weight in scaled]


def soft_dice(logits: Tensor, labels: Tensor, ignored: int | None = None) -> Tensor:
    """1 - mean soft Dice of the foreground classes (Milletari 2016, without squares).

    logits (B, K, D, H, W), labels (B, D, H, W) integers; voxels of the label `ignored` are in no sum. Sums run over the
    batch too: a class absent from one patch of a small batch then does not pull the loss about.
    """
    probabilities = _exact(logits).softmax(1)[:, 1:]
    if ignored is not None:
        known = labels != ignored
        probabilities, labels = probabilities * known[:, None], labels * known
    truth = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    axes = (0, 2, 3, 4)
    both = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    return 1 - ((2 * both + SMOOTH) / (total + SMOOTH)).mean()


def focal(logits: Tensor, labels: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """Mean of -w (1 - p)^gamma log p, p the probability of the true class (Lin et al. 2017, eq. 5, over a softmax).

    logits (B, K, ...), labels (B, ...); the mean is over weights, as of cross-entropy, which gamma = 0 is.
    """
    log_p = _log_true(logits, labels)
    return _weighted(-((1 - log_p.exp()).clamp_min(SURE) ** gamma) * log_p, labels, weight)


def dual_focal(logits: Tensor, labels: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """Mean of -w (1 - p + q)^gamma log p, q the highest probability below p, 0 where none is (Tao, Dong and Xu 2023,
    arXiv 2305.13665). Focal loss makes a network shy; pushing p away from its runner-up q takes part of that back."""
    log_p = _log_true(logits, labels)
    p = log_p.exp()
    every = _exact(logits).softmax(1)
    runner_up = torch.where(every < every.gather(1, labels.long().unsqueeze(1)), every, 0.0).amax(1)
    return _weighted(-((1 - p + runner_up).clamp_min(SURE) ** gamma) * log_p, labels, weight)


def class_loss(logits: Tensor, labels: Tensor, config: LossConfig, weight: Tensor | None = None) -> Tensor:
    """The configured `term`.

    Args:
        logits: (B, K, ...).
        labels: (B, ...) integers, or shares of each class (B, K, ...) that sum to 1.
        config: the term and its options.
        weight: (K,) of the classes.
    """
    if labels.dim() == logits.dim():
        return _of_shares(logits, labels, config, weight)
    gamma = GAMMA.get(config.term, 0.0) if config.gamma is None else config.gamma
    if config.term == "focal":
        return focal(logits, labels, gamma, weight)
    if config.term == "dual_focal":
        return dual_focal(logits, labels, gamma, weight)
    exact = _exact(logits)
    weight = None if weight is None else weight.to(exact)
    return F.cross_entropy(exact, labels.long(), weight, label_smoothing=config.label_smoothing)


def _of_shares(logits: Tensor, shares: Tensor, config: LossConfig, weight: Tensor | None) -> Tensor:
    """The configured term where each target is a mixture of classes: linear in their shares.

    It is the mean over shares times weights, so that shares of 0 and 1 give what the class itself gives.
    """
    exact = _exact(logits)
    log_p, shares = exact.log_softmax(1), shares.to(exact)
    weights = torch.ones_like(shares[:1]) if weight is None else weight.to(exact).view(1, -1, *[1] * (exact.dim() - 2))
    gamma = GAMMA.get(config.term, 0.0) if config.gamma is None else config.gamma
    if config.term == "cross_entropy":
        smooth = config.label_smoothing
        total = (shares * weights).sum()
        return (
            -((1 - smooth) * (shares * weights * log_p).sum() + smooth / exact.shape[1] * (weights * log_p).sum())
            / total
        )
    rest = 1 - log_p.exp()
    if config.term == "dual_focal":
        rest = rest + _runner_up(log_p.exp())
    values = -(rest.clamp_min(SURE) ** gamma) * log_p
    return (shares * weights * values).sum() / (shares * weights).sum()


def _runner_up(p: Tensor) -> Tensor:
    """Of each class (B, K, ...) the highest probability below its own, 0 where there is none."""
    lower = p[:, None] < p[:, :, None]  # [:, k, j]: whether class j is below class k
    return torch.where(lower, p[:, None], 0.0).amax(2)


def dice_ce(
    logits: Tensor,
    labels: Tensor,
    config: LossConfig | None = None,
    weight: Tensor | None = None,
    ignored: int | None = None,
) -> Tensor:
    """Soft Dice plus cross-entropy, equal parts (Isensee et al. 2021), or what `config` says in their place. Weights
    act on the second: Dice weighs the classes evenly by itself. Voxels of the label `ignored` are in neither."""
    config = config or LossConfig()
    voxels, known = _looked_at(logits, labels, ignored)
    loss = class_loss(voxels, known, config, weight) if known.numel() else voxels.sum()  # 0, with a gradient of 0
    return loss + config.dice * soft_dice(logits, labels, ignored) if config.dice else loss


def _looked_at(logits: Tensor, labels: Tensor, ignored: int | None) -> tuple[Tensor, Tensor]:
    """Of maps (B, K, ...) and (B, ...) the voxels (N, K), (N,) whose label is not `ignored`; all where it is None."""
    if ignored is None:
        return logits, labels
    known = labels != ignored
    return logits.movedim(1, -1)[known], labels[known]


def deep_supervision(
    outputs: Sequence[Tensor],
    labels: Tensor,
    config: LossConfig | None = None,
    weight: Tensor | None = None,
    ignored: int | None = None,
) -> Tensor:
    """`dice_ce` at each resolution, weights 1/2^i normalised, the coarsest 0 where there are several (nnU-Net)."""
    weights = [0.5**i for i in range(len(outputs))]
    if len(weights) > 1:
        weights[-1] = 0.0
    total = torch.zeros((), device=labels.device)
    for share, logits in zip(weights, outputs, strict=True):
        if share:
            coarse = F.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0]
            total = total + share / sum(weights) * dice_ce(logits, coarse, config, weight, ignored)
    return total


def smooth_l1(predicted: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """Mean over the batch of e^2 / (2 beta) below beta, |e| - beta / 2 above (Girshick 2015, eq. 3, for beta = 1)."""
    exact = _exact(predicted)
    return F.smooth_l1_loss(exact, target.to(exact), beta=config.smooth_l1_beta)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_true(logits: Tensor, labels: Tensor) -> Tensor:
    return _exact(logits).log_softmax(1).gather(1, labels.long().unsqueeze(1)).squeeze(1)


def _weighted(values: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    of_each = weight.to(values)[labels.long()]
    return (of_each * values).sum() / of_each.sum()
