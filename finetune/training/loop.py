"""The training loop of one model: plain torch, seeded, the same batches for every arm."""

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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scanforge.configs.errors import UserError
from scanforge.finetune.config import AugmentationConfig, ScheduleConfig, ValidationConfig
from scanforge.finetune.tasks.adapter import Adapter, Sample, TaskModel
from scanforge.finetune.training.optimisation import Rates, make_optimiser, preset, use_bfloat16
from scanforge.finetune.training.recipes import Arm

BEATS = 200  # points of the loss curve that are kept


class History(BaseModel):
    """What a training left behind."""

    steps: int
    seconds: float
    loss: list[tuple[int, float]]  # (step, mean loss since the point before)
    validation: list[tuple[int, float]] = []  # (step, headline metric of the held-back cases)
    best_step: int | None = None  # whose weights were kept, where there is a validation


@dataclass
class Progress:
    """Where the loop tells how far it is; the default tells nobody."""

    step: Callable[[int, float], None] = lambda step, loss: None


@dataclass(frozen=True)
class Course:
    """All that a training is told beside its model and its samples."""

    arm: Arm
    seed: int
    schedule: ScheduleConfig
    augmentation: AugmentationConfig
    validation: ValidationConfig
    device: torch.device
    seconds: float | None = None  # to train for, whatever the number of steps; None: as the schedule says

    @property
    def limit(self) -> float | None:
        """Seconds after which it ends."""
        minutes = self.schedule.minutes
        return self.seconds if self.seconds is not None else (minutes * 60 if minutes else None)

    def still(self, step: int, done: float) -> bool:
        """Whether the encoder stands still."""
        return self.arm.still(step, done, self.schedule.frozen_steps)

    def done(self, step: int, spent: float) -> float:
        """Share of the training that is over after `step` steps and `spent` seconds, from 0 to 1 and beyond."""
        by_time = spent / self.limit if self.limit else 0.0
        return by_time if self.seconds is not None else max(step / self.schedule.steps, by_time)


def train(
    adapter: Adapter[Any, Any],
    model: TaskModel,
    samples: Sequence[Sample[Any]],
    course: Course,
    progress: Progress,
    check: Callable[[TaskModel], float] | None = None,
) -> History:
    """Train `model` in place. Batches are a pure function of (seed, step), so all arms see the same ones.

    check: headline metric on held-back cases, higher is better; the weights of the best look are kept.
    UserError where the loss stops being finite.
    """
    schedule = course.schedule
    model.to(course.device).train()
    scale = schedule.encoder_lr_scale if course.arm.pretrained else 1.0
    optimiser = make_optimiser(model, preset(schedule, adapter.spec.backbone.name), scale)
    rates = Rates(optimiser, schedule.warmup_steps, course.still)
    loop = _Loop(model, course, _Keeper(model, course, check))
    draw = _Batches(adapter, samples, course)
    half = use_bfloat16(schedule.precision, course.device)
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(draw, 0)
        while loop.going:
            images, targets = following.result()
            following = ahead.submit(draw, loop.step + 1)
            rates.set(loop.step, loop.done)
            loss = _step(adapter, model, optimiser, images, targets, schedule.clip_norm, course.device, half)
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {loop.step}: lower schedule.lr or look at the intensities")
            loop.count(loss)
            progress.step(loop.step, loss)
        following.cancel()
    return loop.history()


class _Loop:
    """How far a training is, and what it leaves."""

    def __init__(self, model: TaskModel, course: Course, keeper: "_Keeper") -> None:
        self._model, self._course, self._keeper = model, course, keeper
        self._started, self._losses, self._curve = time.monotonic(), [0.0] * 0, [(0, 0.0)] * 0
        self._beat = 0.0
        self.step, self.done = 0, 0.0

    @property
    def going(self) -> bool:
        """Whether another step follows."""
        return self.done < 1 and not self._keeper.enough

    def count(self, loss: float) -> None:
        """One step is over."""
        self._losses.append(loss)
        self.step += 1
        self.done = self._course.done(self.step, time.monotonic() - self._started)
        self._keeper.after(self.step, self.done)
        if self.done >= self._beat + 1 / BEATS or not self.going:
            self._curve.append((self.step, float(np.mean(self._losses))))
            self._losses.clear()
            self._beat = self.done

    def history(self) -> History:
        """The end; the model holds the weights that count."""
        self._keeper.finish()
        seconds = time.monotonic() - self._started
        found, best = self._keeper.found, self._keeper.best_step
        return History(steps=self.step, seconds=seconds, loss=self._curve, validation=found, best_step=best)


class _Keeper:
    """Which weights are kept: the last ones or their average; of the best look at held-back cases, if there are any."""

    def __init__(self, model: TaskModel, course: Course, check: Callable[[TaskModel], float] | None) -> None:
        self._model, self._check, self._validation = model, check, course.validation
        momentum, self._average = course.schedule.average, None
        if momentum:
            self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(momentum), use_buffers=True)
        self._warm = 1 / (1 - momentum)  # steps after which the average has forgotten where it came from
        self.found: list[tuple[int, float]] = []
        self.best_step: int | None = None
        self._best: tuple[float, dict[str, Tensor]] | None = None

    @property
    def enough(self) -> bool:
        """Whether patience is at its end."""
        patience = self._validation.patience
        if patience is None or self.best_step is None:
            return False
        return sum(step > self.best_step for step, _ in self.found) >= patience

    def after(self, step: int, done: float) -> None:
        """Look at the held-back cases where it is time to."""
        if self._average is not None:
            self._average.update_parameters(self._model)
        if self._check is None or (done * self._validation.checks < len(self.found) + 1 and done < 1):
            return
        model = self._current(step)
        training = model.training
        value = self._check(model.eval())
        model.train(training)
        self.found.append((step, value))
        if self._best is None or value >= self._best[0] or math.isnan(self._best[0]):
            self._best = value, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            self.best_step = step

    def finish(self) -> None:
        """Put the weights that count into the model."""
        if self._best is not None:
            self._model.load_state_dict(self._best[1])
        elif self._average is not None:
            self._model.load_state_dict(self._average.module.state_dict())

    def _current(self, step: int) -> TaskModel:
        """The model as it would be kept now."""
        if self._average is None or step < self._warm:
            return self._model
        averaged = self._average.module
        assert isinstance(averaged, TaskModel)
        return averaged


class _Batches:
    """Step -> batch: whole shuffled rounds over the samples, then patches, all from (seed, step)."""

    def __init__(self, adapter: Adapter[Any, Any], samples: Sequence[Sample[Any]], course: Course) -> None:
        self.adapter, self.samples, self.augmentation = adapter, samples, course.augmentation
        self.foreground, self.seed = course.schedule.foreground, course.seed

    def __call__(self, step: int) -> tuple[Tensor, Any]:
        size = self.adapter.spec.plan.batch
        chosen = [self._sample(step * size + i) for i in range(size)]
        rng = np.random.default_rng([self.seed, 1, step])
        return self.adapter.batch(chosen, rng, self.augmentation, self.foreground)

    def _sample(self, position: int) -> Sample[Any]:
        turn, place = divmod(position, len(self.samples))
        return self.samples[np.random.default_rng([self.seed, 0, turn]).permutation(len(self.samples))[place]]


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
