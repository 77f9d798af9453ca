"""What a training gets beside its model and its samples, and what it leaves behind."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel

from scanfoundry.finetune.config.recipes import Arm
from scanfoundry.finetune.config.study import AugmentationConfig, ScheduleConfig, SelfTrainingConfig, ValidationConfig


class History(BaseModel):
    """What a training left behind."""

    steps: int
    seconds: float
    loss: list[tuple[int, float]]  # (step, mean loss since the point before)
    validation: list[tuple[int, float]] = []  # (step, headline metric of the held-back cases)
    relabelled: list[int] = []  # steps after which self-training labelled its scans
    best_step: int | None = None  # whose weights were kept, where there is a validation


@dataclass
class TrainProgress:
    """What the loop calls after each step, with the number of steps and the loss."""

    step: Callable[[int, float], None] = lambda step, loss: None


@dataclass(frozen=True)
class TrainSetup:
    """All that decides a training beside its model and its samples."""

    arm: Arm
    seed: int
    schedule: ScheduleConfig
    augmentation: AugmentationConfig
    validation: ValidationConfig
    self_training: SelfTrainingConfig
    device: torch.device
    seconds: float | None = None  # to train for, whatever the number of steps; None: as the schedule says
    loaded: frozenset[str] | None = None  # parameters of the model that a checkpoint has set; None: the encoder's

    def frozen(self, step: int, done: float) -> bool:
        """Whether the encoder is frozen at this step, when `done` of the training is over."""
        return self.arm.still(step, done, self.schedule.frozen_steps)

    def done(self, step: int, spent: float) -> float:
        """Share of the training that is over after `step` steps and `spent` seconds, from 0 to 1 and beyond."""
        return step / self.schedule.steps if self.seconds is None else spent / self.seconds

    def ahead(self, step: int, done: float) -> float:
        """`done` as it will be after this step; under a budget of time an estimate, 0 before the first step."""
        return (step + 1) / self.schedule.steps if self.seconds is None else done * (step + 1) / max(step, 1)
