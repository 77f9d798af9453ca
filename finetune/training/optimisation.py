"""Optimiser, learning rates and precision of one training."""

import math
from collections.abc import Callable

import torch
from pydantic import BaseModel

from scanfoundry.backbones.protocol import Family
from scanfoundry.finetune.config.study import ScheduleConfig
from scanfoundry.finetune.task import TaskModel


class Preset(BaseModel):
    """An optimiser with every number settled."""

    optimiser: str
    lr: float
    weight_decay: float


def preset(schedule: ScheduleConfig, family: Family) -> Preset:
    """The optimiser and its numbers: what `schedule` gives, and defaults by the backbone's family for the rest.

    Convolutional: AdamW 1e-3. nnU-Net's SGD (1e-2, momentum 0.99) needs its 250,000 steps: in a few hundred AdamW ends
    far higher (measured, see configs/finetune/hippocampus_segmentation.yaml). Transformers: AdamW 3e-4 with decay
    0.05, as Primus from scratch; neither trains with SGD.
    """
    if schedule.optimiser == "sgd":
        chosen = Preset(optimiser="sgd", lr=1e-2, weight_decay=3e-5)
    elif family == "transformer":
        chosen = Preset(optimiser="adamw", lr=3e-4, weight_decay=0.05)
    else:
        chosen = Preset(optimiser="adamw", lr=1e-3, weight_decay=0.01)
    given = {name: value for name in ("lr", "weight_decay") if (value := getattr(schedule, name)) is not None}
    return chosen.model_copy(update=given)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether training runs under bfloat16 autocast. 'auto': on a GPU, and on a CPU with bfloat16 arithmetic, where
    a STU-Net-S step takes 0.56 of the time; predictions on a CPU are float32 always."""
    if precision != "auto":
        return precision == "bfloat16"
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def make_optimiser(model: TaskModel, chosen: Preset, encoder_scale: float) -> torch.optim.Optimizer:
    """Two groups, the encoder first; each has its `base_lr`."""
    encoder = list(model.encoder_parameters())
    known = {id(parameter) for parameter in encoder}
    head = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [
        {"params": [p for p in encoder if p.requires_grad], "base_lr": chosen.lr * encoder_scale},
        {"params": head, "base_lr": chosen.lr},
    ]
    if chosen.optimiser == "sgd":
        return torch.optim.SGD(groups, chosen.lr, 0.99, weight_decay=chosen.weight_decay, nesterov=True)
    return torch.optim.AdamW(groups, chosen.lr, weight_decay=chosen.weight_decay)


def factor(step: int, done: float, warmup: int, frozen: int) -> float:
    """Share of the base rate: 0 while frozen, then a linear warm-up, under a half cosine over `done` in 0..1."""
    if step < frozen:
        return 0.0
    rise = min(1.0, (step - frozen + 1) / warmup) if warmup else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Rates:
    """Learning rates of both groups at each step; a frozen encoder needs no gradients."""

    def __init__(self, optimiser: torch.optim.Optimizer, warmup: int, frozen: Callable[[int, float], bool]) -> None:
        self._encoder, self._head = optimiser.param_groups
        self._warmup, self._frozen = warmup, frozen
        self.thawed = 0  # the first step at which the encoder moves, as far as is known

    def set(self, step: int, done: float) -> None:
        """`done`: share of the training that is over."""
        if self._frozen(step, done):
            self.thawed = step + 1
        self._encoder["lr"] = self._encoder["base_lr"] * factor(step, done, self._warmup, self.thawed)
        self._head["lr"] = self._head["base_lr"] * factor(step, done, self._warmup, 0)
        moving = step >= self.thawed and self._encoder["base_lr"] > 0
        for parameter in self._encoder["params"]:
            parameter.requires_grad_(moving)
