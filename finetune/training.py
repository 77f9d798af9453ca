"""The training loop of one cell: plain torch, seeded, the same batches for both arms."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from scanforge.backbones.registry import TRANSFORMERS
from scanforge.configs.errors import UserError
from scanforge.finetune.adapter import Adapter, Sample, TaskModel
from scanforge.finetune.config import AugmentationConfig, ScheduleConfig

BEATS = 200  # points of the loss curve that are kept


class Recipe(BaseModel):
    """An optimiser with every number settled."""

    optimiser: str
    lr: float
    weight_decay: float


class History(BaseModel):
    """What a training left behind."""

    steps: int
    seconds: float
    loss: list[tuple[int, float]]  # (step, mean loss since the point before)


@dataclass
class Progress:
    """Where the loop tells how far it is; the default tells nobody."""

    step: Callable[[int, float], None] = lambda step, loss: None


def recipe(schedule: ScheduleConfig, backbone: str) -> Recipe:
    """The defaults by backbone. STU-Net: AdamW 1e-3. nnU-Net's SGD (1e-2, momentum 0.99) needs its 250,000 steps:
    in a few hundred AdamW ends far higher (measured, see configs/finetune/hippocampus_segmentation.yaml).
    Transformers: AdamW 3e-4 with decay 0.05, as Primus from scratch; neither trains with SGD.
    """
    if schedule.optimiser == "sgd":
        chosen = Recipe(optimiser="sgd", lr=1e-2, weight_decay=3e-5)
    elif backbone in TRANSFORMERS:
        chosen = Recipe(optimiser="adamw", lr=3e-4, weight_decay=0.05)
    else:
        chosen = Recipe(optimiser="adamw", lr=1e-3, weight_decay=0.01)
    given = {name: value for name in ("lr", "weight_decay") if (value := getattr(schedule, name)) is not None}
    return chosen.model_copy(update=given)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether training runs under bfloat16 autocast. 'auto': on a GPU, and on a CPU with bfloat16 arithmetic, where
    a STU-Net-S step takes 0.56 of the time; predictions on a CPU are float32 always."""
    if precision != "auto":
        return precision == "bfloat16"
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def make_optimiser(model: TaskModel, chosen: Recipe, encoder_scale: float) -> torch.optim.Optimizer:
    """Two groups, the encoder first; each has its `base_lr`."""
    encoder = list(model.encoder_parameters())
    known = {id(parameter) for parameter in encoder}
    head = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [
        {"params": encoder, "base_lr": chosen.lr * encoder_scale},
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


def train(
    adapter: Adapter[Any, Any],
    model: TaskModel,
    samples: Sequence[Sample[Any]],
    schedule: ScheduleConfig,
    augmentation: AugmentationConfig,
    seed: int,
    pretrained: bool,
    device: torch.device,
    progress: Progress,
) -> History:
    """Train `model` in place. Batches are a pure function of (seed, step), so both arms see the same ones.

    UserError where the loss stops being finite.
    """
    optimiser = make_optimiser(
        model, recipe(schedule, adapter.spec.backbone.name), schedule.encoder_lr_scale if pretrained else 1.0
    )
    frozen = schedule.frozen_steps if pretrained else 0
    started, losses, curve, done, step = time.monotonic(), [0.0] * 0, [], 0.0, 0
    half = use_bfloat16(schedule.precision, device)
    model.to(device).train()
    with ThreadPoolExecutor(1) as ahead:
        draw = _Batches(adapter, samples, augmentation, schedule.foreground, seed)
        following = ahead.submit(draw, 0)
        while step < schedule.steps and done < 1:
            images, targets = following.result()
            following = ahead.submit(draw, step + 1)
            _set_rates(optimiser, model, step, done, schedule.warmup_steps, frozen)
            loss = _step(adapter, model, optimiser, images, targets, schedule.clip_norm, device, half)
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {step}: lower schedule.lr or look at the intensities")
            losses.append(loss)
            step += 1
            spent = (time.monotonic() - started) / 60 / schedule.minutes if schedule.minutes else 0.0
            done = max(step / schedule.steps, spent)
            if len(losses) >= max(1, schedule.steps // BEATS) or done >= 1:
                curve.append((step, float(np.mean(losses))))
                losses.clear()
            progress.step(step, loss)
        following.cancel()
    return History(steps=step, seconds=time.monotonic() - started, loss=curve)


class _Batches:
    """Step -> batch: whole shuffled rounds over the samples, then patches, all from (seed, step)."""

    def __init__(
        self,
        adapter: Adapter[Any, Any],
        samples: Sequence[Sample[Any]],
        augmentation: AugmentationConfig,
        foreground: float,
        seed: int,
    ) -> None:
        self.adapter, self.samples, self.augmentation = adapter, samples, augmentation
        self.foreground, self.seed = foreground, seed

    def __call__(self, step: int) -> tuple[Tensor, Any]:
        size = self.adapter.spec.plan.batch
        chosen = [self._sample(step * size + i) for i in range(size)]
        rng = np.random.default_rng([self.seed, 1, step])
        return self.adapter.batch(chosen, rng, self.augmentation, self.foreground)

    def _sample(self, position: int) -> Sample[Any]:
        turn, place = divmod(position, len(self.samples))
        return self.samples[np.random.default_rng([self.seed, 0, turn]).permutation(len(self.samples))[place]]


def _set_rates(
    optimiser: torch.optim.Optimizer, model: TaskModel, step: int, done: float, warmup: int, frozen: int
) -> None:
    encoder, head = optimiser.param_groups
    encoder["lr"] = encoder["base_lr"] * factor(step, done, warmup, frozen)
    head["lr"] = head["base_lr"] * factor(step, done, warmup, 0)
    moving = step >= frozen and encoder["base_lr"] > 0
    for parameter in model.encoder_parameters():
        parameter.requires_grad_(moving)


def _step(
    adapter: Adapter[Any, Any],
    model: TaskModel,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    targets: Any,
    clip: float,
    device: torch.device,
    half: bool,
) -> float:
    if isinstance(targets, Tensor):
        targets = targets.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loss = adapter.loss(model, images.to(device), targets)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return float(loss.detach())
