"""AdamW, LAMB and SGD with the field's settings for each family of backbones, and schedules that are pure functions.

| | convolutional | transformer |
|---|---|---|
| adamw | betas 0.9, 0.95, decay 0.05 | the same: MAE (He et al. 2022, table 8) |
| lamb | SparK (Tian et al. 2023): betas 0.9, 0.95, decay 0.04 rising to 0.2 | betas 0.9, 0.999 |
| sgd | nnU-Net (Isensee et al. 2021): 1e-2, Nesterov 0.99, decay 3e-5, polynomial 0.9 | momentum 0.9, cosine |
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Family
from scanfoundry.configs.base import Config
from scanfoundry.pretrain.engine.lamb import Lamb, is_fused, skips

_ADAMW = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.05, "schedule": "cosine"}
_LAMB = {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.04, "final_weight_decay": 0.2, "schedule": "cosine"}
_SGD = {"lr": 1e-2, "momentum": 0.99, "weight_decay": 3e-5, "schedule": "polynomial"}
PRESETS: dict[tuple[str, Family], dict[str, Any]] = {
    ("adamw", "convolutional"): _ADAMW,
    ("adamw", "transformer"): _ADAMW,
    ("lamb", "convolutional"): _LAMB,
    ("lamb", "transformer"): _LAMB | {"betas": (0.9, 0.999), "weight_decay": 0.05, "final_weight_decay": 0.05},
    ("sgd", "convolutional"): _SGD,
    ("sgd", "transformer"): _SGD | {"momentum": 0.9, "schedule": "cosine"},
}


class OptimiserConfig(Config):
    """What is left out is filled in from `PRESETS` by the backbone's family; `config.yaml` of the run has all of it.

    lr: the peak, used as it stands, not scaled by the batch size. Weight decay is of matrices and kernels only.
    """

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: float | None = Field(default=None, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=50, ge=0)
    schedule: Literal["cosine", "polynomial"] | None = None  # after the warm-up; polynomial of degree 0.9
    betas: tuple[float, float] | None = None  # of adamw and lamb
    momentum: float | None = Field(default=None, ge=0, lt=1)  # of sgd, Nesterov's
    weight_decay: float | None = Field(default=None, ge=0)
    final_weight_decay: float | None = Field(default=None, ge=0)  # along half a cosine; None: it does not change

    def filled(self, family: Family) -> "OptimiserConfig":
        """With the preset's values where there were none; ValueError for a setting that the optimiser does not have."""
        stray = "betas" if self.name == "sgd" else "momentum"
        if getattr(self, stray) is not None:
            raise ValueError(f"optimiser {self.name} has no {stray}")
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        preset = PRESETS[self.name, family]
        if "weight_decay" in given:  # a decay that was chosen stays what it is, unless its end was chosen too
            preset = {key: value for key, value in preset.items() if key != "final_weight_decay"}
        return OptimiserConfig(**{**preset, **given})


def learning_rate(step: int, steps: int, config: OptimiserConfig) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear warm-up, then the schedule down to `min_lr`."""
    assert config.lr is not None
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    left = (1.0 - share) ** 0.9 if config.schedule == "polynomial" else 0.5 * (1.0 + math.cos(math.pi * share))
    return config.min_lr + (config.lr - config.min_lr) * left


def weight_decay(progress: float, config: OptimiserConfig) -> float:
    """The weight decay when `progress` in [0, 1] of the run is done (DINO's schedule, which SparK takes)."""
    start = config.weight_decay or 0.0
    if config.final_weight_decay is None:
        return start
    return config.final_weight_decay + (start - config.final_weight_decay) * 0.5 * (1 + math.cos(math.pi * progress))


class _Skipping(torch.optim.Optimizer):
    """Leaves out a step where `skip` () is not 0; the fused kernel of a device looks at it itself."""

    skip: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, or none."""
        if skips(self):
            return None
        self.found_inf = self.skip if is_fused(self) else None  # the others refuse it
        return super().step(closure)


class AdamW(_Skipping, torch.optim.AdamW):
    """torch's, which may leave out a step."""


class SGD(_Skipping, torch.optim.SGD):
    """torch's, which may leave out a step."""


def build_optimiser(model: nn.Module, config: OptimiserConfig, fused: bool = False) -> AdamW | SGD | Lamb:
    """Of the trainable parameters, those with one effective dimension (biases, norms, tokens) are not decayed.

    Args:
        model: the objective.
        config: filled in.
        fused: AdamW and SGD in one kernel, which is for a GPU; on a CPU its roundings are others.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            vector = sum(size > 1 for size in parameter.shape) <= 1
            (plain if vector else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "scheduled": True},
        {"params": plain, "weight_decay": 0.0, "scheduled": False},
    ]
    groups = [group for group in groups if group["params"]]
    lr = config.lr or 0.0
    if config.name == "sgd":
        momentum = config.momentum or 0.0
        return SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused or None)
    betas = config.betas or (0.9, 0.95)
    return (
        Lamb(groups, lr=lr, betas=betas)
        if config.name == "lamb"
        else AdamW(groups, lr=lr, betas=betas, fused=fused or None)
    )


def set_schedule(optimiser: Any, lr: float, decay: float) -> None:
    """Set this step's learning rate, and the weight decay of the groups that are decayed."""
    for group in optimiser.param_groups:
        group["lr"] = lr
        if group["scheduled"]:
            group["weight_decay"] = decay
