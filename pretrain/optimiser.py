"""AdamW with the field's parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from pydantic import Field
from torch import nn

from scanforge.configs.base import Config


class OptimiserConfig(Config):
    """AdamW after MAE (He et al. 2022, table 8): betas (0.9, 0.95), weight decay 0.05 on matrices only.

    `lr` is the peak; it is used as it stands, not scaled by the batch size.
    """

    lr: float = Field(default=3e-4, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=50, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.05, ge=0)


def learning_rate(step: int, steps: int, config: OptimiserConfig) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear warm-up, then half a cosine to `min_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
    return config.min_lr + (config.lr - config.min_lr) * cosine


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; biases, norms and tokens (one effective dimension) are not decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            vector = sum(size > 1 for size in parameter.shape) <= 1
            (plain if vector else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas)
