"""What the training loop, the evaluation and the report ask of a task; one subclass per task."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.config.study import AugmentationConfig, ValidationConfig
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.registry import added_metrics
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.sample import HeldBackCase, Sample, TargetT, Validation
from scanfoundry.finetune.sample_maker import SampleMaker
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.task_parts import OutputFiles, Picture, TableRow, TaskPresentation

PredictionT = TypeVar("PredictionT")


class TaskModel(nn.Module, ABC):
    """A network that knows which of its weights belong to the encoder, to a decoder and to the head."""

    def part_of(self, name: str) -> tuple[Part, str]:
        """The part that a weight of the state dict belongs to, and its name within the part."""
        encoder = name.startswith("encoder.")
        return ("encoder", name.removeprefix("encoder.")) if encoder else ("head", name)

    def class_axis(self, name: str) -> int:
        """The axis of a weight of the head, by its name, along which the classes lie."""
        return 0

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the encoder."""
        return (weight for name, weight in self.named_parameters() if self.part_of(name)[0] == "encoder")


class Adapter(SampleMaker[TargetT], TaskPresentation, Generic[TargetT, PredictionT]):
    """One task: from case to sample, batch, loss, prediction, numbers and picture.

    An adapter never changes. What a trial decides gives a new one, with more in its specification:

    1. `surveyed`: from the training cases as they were checked, how cases are read
    2. `planned`: from the training samples, weights of classes or a scale
    3. `settled`: from the held-back cases, a temperature or post-processing
    """

    target_type: ClassVar[type | None] = None  # of targets that are dataclasses of arrays: their class

    def __init__(self, spec: Spec) -> None:
        spec.task.check_loss(spec.loss)
        self.spec = spec

    def with_spec(self, **decided: Any) -> Self:
        """The task with these values in its specification."""
        return type(self)(self.spec.model_copy(update=decided))

    def surveyed(self, cases: Sequence[Case], checked: Checked | None = None) -> Self:
        """The task with what decides how cases are read, from the training cases: windows or whole scans of boxes.

        Args:
            cases: to train on.
            checked: what is known of the cases; those that it does not know are read.
        """
        return self

    def planned(self, samples: Sequence[Sample[TargetT]]) -> Self:
        """The task with what it takes from its training samples: weights of classes, a scale."""
        return self

    @abstractmethod
    def load(self, case: Case) -> Sample[TargetT]:
        """A labelled case, read, normalised and resampled."""

    @abstractmethod
    def build(self, encoder: Encoder) -> TaskModel:
        """The network around an encoder; the weights of the head are new."""

    @abstractmethod
    def batch(
        self, samples: Sequence[Sample[TargetT]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, Any]:
        """Augmented images (B, C, *patch) and their targets; a pure function of `rng`."""

    @abstractmethod
    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """The scalar to minimise."""

    @abstractmethod
    def predict(self, members: Sequence[TaskModel], sample: Sample[TargetT], device: torch.device) -> PredictionT:
        """The prediction at the file's grid of models in evaluation mode, together."""

    @abstractmethod
    def record(self, case: Case, sample: Sample[TargetT], prediction: PredictionT) -> Record:
        """Numbers of one test case as JSON, with its hashed identity and its `score` (lowest is worst)."""

    @abstractmethod
    def metrics(self) -> dict[str, Statistic]:
        """Functions from the records of the test cases to a number, by name."""

    @abstractmethod
    def picture(self, sample: Sample[TargetT], prediction: PredictionT) -> Picture:
        """Small arrays that the report draws a case from."""

    @abstractmethod
    def columns(self) -> list[str]:
        """The columns of the table of predictions after the file's, in the order in which `write` fills them."""

    @abstractmethod
    def write(
        self, members: Sequence[TaskModel], sample: Sample[TargetT], device: torch.device, files: OutputFiles
    ) -> TableRow:
        """Predict one scan and put its files, if it has any; gives its part of the table."""

    def all_metrics(self) -> dict[str, Statistic]:
        """`metrics`, and those that plug-ins add; UserError where a name is taken."""
        own, added = self.metrics(), added_metrics(self.spec.task.name)
        if taken := own.keys() & added.keys():
            raise UserError(f"a plug-in adds a metric '{min(taken)}', which {self.spec.task.name} has already")
        return own | {name: metric.function for name, metric in added.items()}

    def shown_metrics(self) -> list[str]:
        """The metrics of the report's table: `overview`, and those of plug-ins."""
        return [*self.overview, *added_metrics(self.spec.task.name)]

    def explained(
        self, members: Sequence[TaskModel], sample: Sample[TargetT], prediction: PredictionT, device: torch.device
    ) -> Picture:
        """`picture`, and where a task can tell, what the models decided by."""
        return self.picture(sample, prediction)

    def head_rows(self) -> list[str] | None:
        """What each row of the head's last layers is of; None where the head is one whole for its classes."""
        return None

    def relabelled(
        self, members: Sequence[TaskModel], sample: Sample[TargetT], device: torch.device
    ) -> Sample[TargetT]:
        """The sample with the target that models in evaluation mode give it, for self-training."""
        raise NotImplementedError(f"self-training of {self.spec.task.name}")

    def held(self, sample: Sample[TargetT], prediction: PredictionT) -> list[HeldBackCase]:
        """What post-processing is chosen by, of a held-back case; nothing where there is none to choose."""
        return []

    def settled(self, held: Validation, config: ValidationConfig) -> Self:
        """The task with what the held-back cases decide."""
        return self


def identity(case: Case) -> Record:
    """The part of a record that says whose it is, in hashes."""
    return {"case": case.key, "patient": case.patient}
