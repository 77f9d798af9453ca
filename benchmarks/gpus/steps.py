"""A step as the loop of a run takes it, on a batch that is there: views, forward and backward pass, optimiser."""

import math
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import nn

from gpus.batches import MODALITY, make_batch
from gpus.cases import Case
from gpus.parts import Refused, Setting
from scanfoundry.backbones.registry import build
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.device import HostCopy
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine import acceleration
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.engine.optimiser import build_optimiser, learning_rate, set_schedule, weight_decay
from scanfoundry.pretrain.objectives import Objective
from scanfoundry.pretrain.views import Views


class Steps:
    """The steps of one kind of crop (D, H, W) of a case, by a plain loop: what one writes without any framework.

    Attributes:
        losses: of the steps that were read.
        objective: that is trained.
        how: 'plain loop' or 'engine'.
    """

    how = "plain loop"

    def __init__(self, case: Case, setting: Setting, crop: Size3D, count: int) -> None:
        self.config = case.config(setting.small, setting.work)
        self.objective = make_objective(self.config)
        self.losses, self._done = list[float](), 0
        self._views = Views(self.config.data, self.objective.views, self.objective.clean)
        self._device = setting.where
        self._batch = make_batch(self.config, crop, count, self._device, self.objective.labels)
        self._prepare(setting)
        if case.channels_last:
            lay_channels_last(self.objective)

    def _prepare(self, setting: Setting) -> None:
        acceleration.set_kernels(self._device, self.config.engine.tf32, self.config.engine.autotune)
        self.objective.to(self._device).train()
        self._optimiser = build_optimiser(self.objective, self.config.optimiser, setting.device == "cuda")

    def launch(self) -> Callable[[], float]:
        """Queue a step.

        Returns:
            What waits for its loss, and returns it.
        """
        lr, progress = self._next()
        set_schedule(self._optimiser, lr, weight_decay(progress, self.config.optimiser))
        self._optimiser.zero_grad(set_to_none=True)
        bf16 = self.config.engine.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            loss, _ = self.objective(*self._views(self._batch))
        loss.backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.engine.clip)
        self._optimiser.step()
        copied = HostCopy(loss.detach())
        return lambda: copied.read().item()

    def _next(self) -> tuple[float, float]:
        """The learning rate of the next step, and the share of the run that is done with it."""
        lr = learning_rate(self._done, self.config.steps, self.config.optimiser)
        self._done += 1
        return lr, self._done / self.config.steps

    def run(self, count: int) -> None:
        """Steps as the loop takes them: each is queued before the one before it is read."""
        before: Callable[[], float] | None = None
        for _ in range(count):
            loss = self.launch()
            if before is not None:
                self._note(before())
            before = loss
        if before is not None:
            self._note(before())

    def _note(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise Refused(f"the loss was not finite in one of the first {self._done} steps")
        self.losses.append(loss)


class EngineSteps(Steps):
    """Steps by the product's engine."""

    how = "engine"

    def _prepare(self, setting: Setting) -> None:
        world = join(setting.device, setting.threads)
        self._engine = Engine(self.objective, self.config.optimiser, self.config.engine, world, [MODALITY])
        self._engine.train()

    def launch(self) -> Callable[[], float]:
        """Queue a step; a loss that was not finite reads as such, since the engine left the step out."""
        lr, progress = self._next()
        pending = self._engine.launch([self._views(self._batch)], lr, progress)
        return lambda: pending.read().loss


@cache
def steps_here() -> type[Steps]:
    """By the engine, where DeepSpeed can be imported; a plain loop measures all but what the engine adds."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import_module("deepspeed")
    except Exception as error:
        print(f"DeepSpeed cannot be imported: {error!r}", flush=True)  # into the log of the part
        return Steps
    return EngineSteps


def make_objective(config: PretrainConfig) -> Objective:
    """The objective of a run, with weights from its seed."""
    torch.manual_seed(config.seed)
    return config.objective.build(build(config.backbone))


def lay_channels_last(objective: Objective) -> None:
    """Kernels of 3D convolutions, channels last; DeepSpeed refuses such weights while it makes its engine."""
    for parameter in objective.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
