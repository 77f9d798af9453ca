"""Self-training: scans without a label are trained on with the labels of the model of the moment, again and again
(pseudo-labels, Lee 2013; the labels come from an average of the weights without augmentation and are learnt with it,
as in Noisy Student, Xie et al. 2020, arXiv 1911.04252)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scanfoundry.finetune.config.study import SelfTrainingConfig
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.training.best_weights import evaluating
from scanfoundry.finetune.training.resuming import Part, as_array, as_tensor


class SelfTraining:
    """When scans are labelled, and by whom.

    half: in bfloat16, as the training is: on a CPU 0.3 of the time, and of 25 scans labels whose Dice with those of
    float32 is 0.9995 (0.9992 at least).
    """

    def __init__(
        self,
        config: SelfTrainingConfig,
        adapter: Adapter[Any, Any],
        scans: Sequence[Sample[Any]],
        device: torch.device,
        half: bool = False,
    ) -> None:
        self._config, self._adapter, self._scans = config, adapter, scans
        self._device, self._half = device, half
        self._rounds = config.rounds if scans else 0
        self._begin = 0.0  # `done` of the first round
        self.share = config.share
        self.steps: list[int] = []  # after which they were labelled
        self._packed: dict[str, Tensor] = {}  # the labels of the last round, compressed

    def due(self, step: int, done: float) -> bool:
        """Whether it is time for the next round, after `step` steps; `done`: share of the training that is over."""
        turn = len(self.steps)
        if turn >= self._rounds or done >= 1:
            return False
        if not turn:
            self._begin = done
            return done >= self._config.start and step >= self._config.min_steps
        return self._begin + (1 - self._begin) * turn / self._rounds <= done

    def label(self, teacher: TaskModel, step: int) -> list[Sample[Any]]:
        """The scans with the labels that `teacher` gives them."""
        self.steps.append(step)
        kind = self._device.type
        with evaluating(teacher), torch.autocast(kind, torch.bfloat16, enabled=self._half):
            labelled = [self._adapter.relabelled([teacher], scan, self._device) for scan in self._scans]
        self._packed.clear()
        return labelled

    def state(self, labelled: Sequence[Sample[Any]]) -> Part:
        """When scans were labelled, and how at last, for a snapshot."""
        if not self._packed:
            for number, sample in enumerate(labelled):
                assert sample.target is not None
                self._packed[str(number)] = as_tensor(sample.target)
        return self._packed, {"begin": self._begin, "steps": self.steps}

    def restore(self, part: Part) -> list[Sample[Any]]:
        """Go on from what `state` gave; the scans with their labels."""
        held, facts = part
        self._begin, self.steps, self._packed = facts["begin"], facts["steps"], dict(held)
        if not held:
            return []
        shapes = [tuple(scan.image.shape[1:]) for scan in self._scans]
        return [
            replace(scan, target=as_array(held[str(number)], shape))
            for number, (scan, shape) in enumerate(zip(self._scans, shapes, strict=True))
        ]
