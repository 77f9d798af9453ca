"""The training loop of one model: plain torch, seeded, the same batches for every arm."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.training.batches import Batches
from scanfoundry.finetune.training.best_weights import BestWeights
from scanfoundry.finetune.training.distillation import Distillation, Teacher
from scanfoundry.finetune.training.optimisation import make_optimiser, preset, scales_of, use_bfloat16
from scanfoundry.finetune.training.rates import Rates
from scanfoundry.finetune.training.resuming import Part, gathered, spread
from scanfoundry.finetune.training.saving import Snapshot
from scanfoundry.finetune.training.self_training import SelfTraining
from scanfoundry.finetune.training.setup import History, TrainProgress, TrainSetup
from scanfoundry.finetune.training.slot import NOWHERE, Slot

BEATS = 200  # points of the loss curve that are kept


def train(
    adapter: Adapter[Any, Any],
    model: TaskModel,
    samples: Sequence[Sample[Any]],
    setup: TrainSetup,
    progress: TrainProgress,
    check: Callable[[TaskModel], float] | None = None,
    unlabelled: Sequence[Sample[Any]] = (),
    slot: Slot = NOWHERE,
    encoder: Encoder | None = None,
    teacher: Teacher | None = None,
) -> History:
    """Train `model` in place. Batches are a pure function of (seed, step), so all arms see the same ones.

    Args:
        adapter: the task, planned.
        model: the network; on return it has the weights that count, on the device of `setup`.
        samples: with their targets.
        setup: all that decides the training beside model and samples.
        progress: is called after each step.
        check: the headline metric of a model on held-back cases, higher is better; the best weights are kept.
        unlabelled: samples without a target, for self-training.
        slot: where the training is saved now and then; it goes on from what is saved there already.
        encoder: of the model, whose layers `schedule.layer_decay` counts, and whose features a teacher is matched with.
        teacher: has a part in the loss, where there is one.

    Returns:
        The curves of the training.

    Raises:
        UserError: the loss is not finite.
        Stopped: a signal came, and the training is saved.
    """
    schedule = setup.schedule
    model.to(setup.device).train()
    family = adapter.spec.backbone.family
    scales = scales_of(schedule, setup.arm, family)
    distil = None
    if teacher is not None:
        assert encoder is not None
        distil = Distillation(teacher, adapter, encoder, setup.seed, setup.device)
    beside = distil.parameters() if distil else []
    optimiser = make_optimiser(model, preset(schedule, family), scales, setup.loaded, encoder, beside)
    rates = Rates(optimiser, setup, scales.decoder)
    loop = _Loop(model, setup, BestWeights(model, schedule.average, setup.validation, check))
    half = use_bfloat16(schedule.precision, setup.device)
    others = SelfTraining(setup.self_training, adapter, unlabelled, setup.device, half)
    with Batches(adapter, samples, setup.seed, setup.augmentation, schedule.foreground) as batches, slot.soon():
        state = _State(setup.device, model, optimiser, rates, loop, others, batches, distil)
        state.restore(slot)
        while loop.going:
            images, targets = batches.take(loop.step)
            rates.set(loop.step, loop.done)
            loss = _step(distil or adapter, model, optimiser, images, targets, schedule.clip_norm, setup.device, half)
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {loop.step}: lower schedule.lr or look at the intensities")
            loop.count(loss)
            progress.step(loop.step, loss)
            if others.due(loop.step, loop.done):
                batches.mix(others.label(loop.kept, loop.step), others.share)
            if loop.going:
                slot.chance(f"step {loop.step}", state.take)
    return loop.history().model_copy(update={"relabelled": others.steps})


@dataclass(frozen=True)
class _State:
    """All that changes in a training, in and out of snapshots."""

    device: torch.device
    model: TaskModel
    optimiser: torch.optim.Optimizer
    rates: Rates
    loop: "_Loop"
    others: SelfTraining
    batches: Batches
    distil: Distillation | None

    def take(self) -> Snapshot:
        """A snapshot of all of it."""
        return gathered(
            self.device, self.model, self.optimiser,
            rates=({}, {"thawed": self.rates.thawed}), best=self.loop.best.state(), loop=self.loop.state(),
            others=self.others.state(self.batches.others), distil=self.distil.state() if self.distil else ({}, {}),
        )  # fmt: skip

    def restore(self, slot: Slot) -> None:
        """Restore the newest snapshot, where there is one."""
        found = slot.read()
        if found is None:
            return
        parts = spread(found, self.device, self.model, self.optimiser)
        self.rates.thawed = parts["rates"][1]["thawed"]
        self.loop.best.restore(parts["best"])
        self.loop.restore(parts["loop"])
        if self.distil:
            self.distil.restore(parts["distil"])
        labelled = self.others.restore(parts["others"])
        if labelled:
            self.batches.mix(labelled, self.others.share)
        slot.goes_on(f"step {self.loop.step}")


class _Loop:
    """How far a training is, and what it leaves."""

    def __init__(self, model: TaskModel, setup: TrainSetup, best: BestWeights) -> None:
        self._model, self._setup, self.best = model, setup, best
        self._started, self._losses, self._curve = time.monotonic(), [0.0] * 0, [(0, 0.0)] * 0
        self._beat = 0.0
        self.step, self.done = 0, 0.0

    @property
    def going(self) -> bool:
        """Whether another step follows."""
        return self.done < 1 and not self.best.enough

    def count(self, loss: float) -> None:
        """One step is over."""
        self._losses.append(loss)
        self.step += 1
        self.done = self._setup.done(self.step, time.monotonic() - self._started)
        self.best.after(self.step, self.done)
        if self.done >= self._beat + 1 / BEATS or not self.going:
            self._curve.append((self.step, float(np.mean(self._losses))))
            self._losses.clear()
            self._beat = self.done

    def state(self) -> Part:
        """How far it is, for a snapshot."""
        spent = time.monotonic() - self._started
        counted = {"step": self.step, "done": self.done, "beat": self._beat, "spent": spent}
        return {}, counted | {"losses": self._losses, "curve": self._curve}

    def restore(self, part: Part) -> None:
        """Go on from what `state` gave; the time between does not count."""
        facts = part[1]
        self.step, self.done, self._beat = facts["step"], facts["done"], facts["beat"]
        self._losses, self._curve = facts["losses"], [(step, loss) for step, loss in facts["curve"]]
        self._started = time.monotonic() - facts["spent"]

    @property
    def kept(self) -> TaskModel:
        """The model as it would be kept now."""
        return self.best.current(self.step)

    def history(self) -> History:
        """The end; the model holds the weights that count."""
        self.best.finish()
        seconds = time.monotonic() - self._started
        found, best = self.best.found, self.best.best_step
        return History(steps=self.step, seconds=seconds, loss=self._curve, validation=found, best_step=best)


def _step(
    task: Adapter[Any, Any] | Distillation,
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
        loss = task.loss(model, images.to(device), targets)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return float(loss.detach())
