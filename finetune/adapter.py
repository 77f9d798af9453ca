"""What the training loop, the evaluation and the report ask of a task; one subclass per task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from scanforge.backbones.protocol import Encoder
from scanforge.backbones.registry import BackboneConfig
from scanforge.configs.base import Config
from scanforge.datasets.intensity import IntensityConfig
from scanforge.datasets.readers import Scan
from scanforge.finetune.boxes.plan import DetectionPlan
from scanforge.finetune.cases import Case
from scanforge.finetune.config import AugmentationConfig, InferenceConfig, Task
from scanforge.finetune.metrics.intervals import Record
from scanforge.finetune.plan import Plan
from scanforge.finetune.sampling import extract, still_window
from scanforge.finetune.volumes import Shape, prepared, read_one, resize

TargetT = TypeVar("TargetT")
PredictionT = TypeVar("PredictionT")
Picture = dict[str, npt.NDArray]


class Spec(Config):
    """All that a fine-tuned model is, apart from its weights; the body of its `model.json`."""

    format_version: Literal[1] = 1
    kind: Literal["finetuned"] = "finetuned"
    task: Task
    classes: list[str]
    modality: str
    intensity: IntensityConfig
    backbone: BackboneConfig
    plan: Plan
    inference: InferenceConfig
    flip_axes: list[int] = []
    anchors: list[list[list[float]]] | None = None  # detection: sizes by level, from the training boxes
    detection: DetectionPlan | None = None  # what else is planned from them
    trained: dict[str, Any] = Field(default_factory=dict)  # arm, shots, seed, steps, versions


@dataclass
class Sample(Generic[TargetT]):
    """A scan at the plan's grid, with what it was before."""

    image: Tensor  # (C, D, H, W) normalised
    fill: float  # the value outside the scan
    shape: Shape  # of the file
    orientation: str  # of the file, see `Scan`
    target: TargetT | None  # at the plan's grid
    truth: TargetT | None  # at the file's grid


class TaskModel(nn.Module, ABC):
    """A network that knows which of its parameters belong to the encoder."""

    @abstractmethod
    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that pre-training may have set."""


class Adapter(ABC, Generic[TargetT, PredictionT]):
    """One task: from case to sample, batch, loss, prediction, numbers and picture."""

    headline: str  # the metric the report leads with

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @abstractmethod
    def shape_of(self, scan: Scan) -> Shape:
        """The grid (D, H, W) that a scan is brought to."""

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
    def predict(self, members: Any, sample: Sample[TargetT], device: torch.device) -> PredictionT:
        """The prediction at the file's grid; the model is in evaluation mode."""

    @abstractmethod
    def record(self, case: Case, sample: Sample[TargetT], prediction: PredictionT) -> Record:
        """Numbers of one test case as JSON, with its hashed identity and its `score` (lowest is worst)."""

    @abstractmethod
    def metrics(self) -> dict[str, Callable[[list[Record]], float]]:
        """Functions from the records of the test cases to a number, by name."""

    @abstractmethod
    def picture(self, sample: Sample[TargetT], prediction: PredictionT) -> Picture:
        """Small arrays that the report draws a case from."""

    def prepare(self, scan: Scan) -> tuple[Tensor, float]:
        """The image at the plan's grid and the value outside it."""
        image, fill = prepared(scan, self.spec.backbone.in_channels, self.spec.modality, self.spec.intensity)
        return torch.from_numpy(resize(image, self.shape_of(scan))), fill

    def unlabelled(self, scan: Scan) -> Sample[TargetT]:
        """A scan to predict on."""
        image, fill = self.prepare(scan)
        d, h, w = scan.voxels.shape[1:]
        return Sample(image, fill, (d, h, w), scan.orientation, None, None)

    def read(self, case: Case) -> tuple[Scan, Sample[TargetT]]:
        """The scan of a case and its sample, still without target."""
        scan = read_one(case.image)
        return scan, self.unlabelled(scan)

    def mirrors(self) -> list[tuple[int, ...]]:
        """Axes to flip together for each pass of a prediction; the first pass flips none."""
        axes = [axis for axis in self.spec.flip_axes if self.spec.plan.patch[axis] > 1]
        if not self.spec.inference.mirror:
            return [()]
        return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


def fitted_shape(shape: Shape, spacing: tuple[float, float, float], plan: Plan) -> Shape:
    """A scan scaled evenly (in mm) until it just fits into the patch; depth 1 stays."""
    extent = np.array(shape) * np.array(spacing) / np.array(plan.spacing)
    free = np.array(shape) > 1
    zoom = min(np.array(plan.patch)[free] / extent[free], default=1.0)
    sizes = np.where(free, np.clip(np.round(extent * zoom), 1, plan.patch), 1).astype(int)
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def centred(sample: Sample[Any], plan: Plan) -> Tensor:
    """The whole fitted scan in the middle of a patch: (1, C, *patch)."""
    d, h, w = sample.image.shape[1:]
    return extract(sample.image, still_window((d, h, w), plan.patch), sample.fill)[None]


def upright(slice_: npt.NDArray, orientation: str, axis: int) -> npt.NDArray:
    """A slice across `axis` as radiologists look at it: anterior or superior up, the patient's right (or front) left.

    `orientation` says where D, H and W grow to; '' (an image) changes nothing.
    """
    if not orientation:
        return slice_
    rows, columns = (code for a, code in enumerate(orientation) if a != axis)
    turned = slice_[::-1] if rows in "AS" else slice_
    return turned[:, ::-1] if columns in "RA" else turned


def identity(case: Case) -> Record:
    """The part of a record that says whose it is, in hashes."""
    return {"case": case.key, "patient": case.patient}
