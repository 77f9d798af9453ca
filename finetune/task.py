"""What the training loop, the evaluation and the report ask of a task; one subclass per task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D, Spacing3D
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.appearance import Profile
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.cases.channels import hide_channels, read_channels, stacked
from scanfoundry.finetune.cases.label_values import LabelValues, consecutive
from scanfoundry.finetune.cases.patches import extract, identity_patch, vary_intensity
from scanfoundry.finetune.cases.volumes import Labels, check_resampled_size, prepared, resize, voxel_mm3
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.config.detection import DetectionPlan
from scanfoundry.finetune.config.loss import LossConfig
from scanfoundry.finetune.config.postprocess import ClassRule
from scanfoundry.finetune.config.recipes import Head, ProbeConfig
from scanfoundry.finetune.config.study import AugmentationConfig, InferenceConfig, ValidationConfig
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.registry import added_metrics
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.plan import Plan
from scanfoundry.finetune.task_parts import ExportTexts, OutputFiles, Picture, ReportTexts, TableRow

TargetT = TypeVar("TargetT")
PredictionT = TypeVar("PredictionT")


class Standard(Config):
    """Mean and standard deviation of the training cases' values; what the network says is in these terms."""

    mean: float
    std: float = Field(gt=0)


class Spec(Config):
    """All that a fine-tuned model is, apart from its weights; the body of its `model.json`."""

    model_config = ConfigDict(defer_build=True)  # until the tasks of plug-ins can be imported, see `Task`
    format_version: Literal[1, 2] = 2  # of 1 the weights have no parts
    kind: Literal["finetuned"] = "finetuned"
    task: Task
    classes: list[str]
    values: LabelValues | None = None  # of label maps and of predictions; None: the classes are 1..n
    channels: list[str] = ["image"]  # names of the input channels, in order
    modality: str  # of the first channel, and of all unless `modalities` says more
    modalities: list[str] = []  # of each channel, where they differ
    profiles: list[Profile] = []  # of each channel: how the training scans look
    intensity: IntensityConfig
    backbone: BackboneConfig
    plan: Plan
    inference: InferenceConfig
    flip_axes: list[int] = []
    loss: LossConfig = LossConfig()
    class_weights: list[float] | None = None  # of the loss, from the training cases; None: all equal
    temperature: float = Field(default=1.0, gt=0)  # of class probabilities, see `calibration.py`
    standard: Standard | None = None  # regression: of the training cases
    anchors: list[list[list[float]]] | None = None  # detection: sizes by level, from the training boxes
    detection: DetectionPlan | None = None  # what else is planned from them
    head: Head = "plain"  # classification: what stands on the features
    probe: ProbeConfig = ProbeConfig()  # of an attentive or a nearest-neighbour head
    members: int = 1  # models that predict together
    postprocess: list[ClassRule] = []  # segmentation: by class, from the held-back cases
    trained: dict[str, Any] = Field(default_factory=dict)  # arm, shots, seed, steps

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        """Without the option that models of earlier versions carry and that has gone, where it had its only value."""
        if (
            isinstance(value, dict)
            and isinstance(value.get("loss"), dict)
            and value["loss"].get("dice_over") == "batch"
        ):
            return value | {"loss": {name: each for name, each in value["loss"].items() if name != "dice_over"}}
        return value

    @property
    def labels(self) -> LabelValues:
        """`values`, or that the classes are 1..n."""
        return self.values or consecutive(len(self.classes))


@dataclass
class Sample(Generic[TargetT]):
    """A scan at the plan's grid, with what it was before."""

    image: Tensor  # (C, D, H, W) normalised
    fill: float  # the value outside the scan
    shape: Size3D  # of the file
    spacing: Spacing3D  # of the file, mm
    orientation: str  # of the file, see `Scan`
    target: TargetT | None  # at the plan's grid
    truth: TargetT | None  # at the file's grid
    present: Tensor | None = None  # (C,) bool: which channels the case has; None: all
    voxel_mm3: float = 1.0  # of the file
    features: Tensor | None = None  # (F, d, h, w) the deepest ones of a frozen encoder, where they are known already


@dataclass(frozen=True)
class HeldBackCase:
    """A held-back case: what was predicted of it, the truth, and the volume of a voxel; of some voxels (see
    `calibration.drawn_spots`) the probabilities (N, K) and the true labels (N,)."""

    prediction: Labels
    truth: Labels
    voxel_mm3: float
    probabilities: npt.NDArray[np.float32] | None = None
    labels: Labels | None = None


@dataclass
class Validation:
    """What was predicted of the held-back cases, each by a model that never saw it."""

    records: list[Record]
    maps: list[HeldBackCase]  # segmentation alone


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


class Adapter(ABC, Generic[TargetT, PredictionT]):
    """One task: from case to sample, batch, loss, prediction, numbers and picture."""

    target_type: ClassVar[Callable[..., Any] | None] = None  # of targets that are named tuples of arrays: their class
    headline: ClassVar[str]  # the metric the report leads with
    overview: ClassVar[tuple[str, ...]]  # the metrics of the report's table; all of them are in results.json
    report: ClassVar[ReportTexts]
    export: ClassVar[ExportTexts] = ExportTexts()
    table: ClassVar[str] = "predictions.csv"  # of `predict`; .json where rows hold more than numbers and texts
    conventions: ClassVar[Mapping[str, str]] = {}  # what the numbers of a table in JSON mean
    files: ClassVar[tuple[str, ...]] = ()  # kinds of files that `write` may put beside the table
    options: ClassVar[frozenset[str]] = frozenset()  # of `predict` that `write` reads: probabilities, uncertainty
    frames_apart: ClassVar[bool] = False  # whether each frame of a file of images is an image of its own

    def __init__(self, spec: Spec) -> None:
        spec.task.check_loss(spec.loss)
        self.spec = spec

    def surveyed(self, cases: Sequence[Case], checked: Checked | None = None) -> Spec:
        """The spec with what decides how training cases are read, from those cases: windows or whole scans of boxes."""
        return self.spec

    def planned(self, samples: Sequence[Sample[TargetT]]) -> Spec:
        """The spec with what this task takes from its training samples: weights of classes, a scale, anchors."""
        return self.spec

    @abstractmethod
    def shape_of(self, scan: Scan) -> Size3D:
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

    @classmethod
    def charts(
        cls, shown: list[Record], by_arm: Mapping[str, list[Record]], classes: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Captions and inline images (see `drawing.charts`) that the report has of this task.

        Args:
            shown: records of the test cases by the model that is kept.
            by_arm: records by the name of the arm, of the same seed and shots.
            classes: names of the classes.
        """
        return []

    @staticmethod
    def draw(axes: Any, picture: Picture, n_classes: int) -> None:
        """Draw truth and prediction upon the scan of a picture, see `drawing.overlays`."""

    @staticmethod
    def bars(picture: Picture, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Bars beside a picture: `name`, `value` from 0 to 1, and whether it is the `true` one."""
        return []

    @property
    def in_windows(self) -> bool:
        """Whether scans are brought to the plan's spacing and seen in windows; otherwise they are seen whole."""
        return self.spec.task.windows

    def head_rows(self) -> list[str] | None:
        """What each row of the head's last layers is of; None where the head is one whole for its classes."""
        return None

    def output_names(self) -> list[str]:
        """What each channel of the exported network's output is of."""
        return list(self.spec.classes)

    def array_names(self, count: int) -> list[str]:
        """Names of the arrays that the exported network gives, of which there are `count`."""
        return ["logits"]

    def export_steps(self) -> str:
        """What follows after the exported network, for people."""
        return self.export.steps

    def export_details(self, model: TaskModel, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What else an export's description holds; `shapes` are those of the outputs for one image."""
        return {}

    def relabelled(
        self, members: Sequence[TaskModel], sample: Sample[TargetT], device: torch.device
    ) -> Sample[TargetT]:
        """The sample with the target that models in evaluation mode give it, for self-training."""
        raise NotImplementedError(f"self-training of {self.spec.task.name}")

    def held(self, sample: Sample[TargetT], prediction: PredictionT) -> list[HeldBackCase]:
        """What post-processing is chosen by, of a held-back case; nothing where there is none to choose."""
        return []

    def settled(self, held: Validation, config: ValidationConfig) -> Spec:
        """The spec with what the held-back cases decide."""
        return self.spec

    def prepare(self, scans: Sequence[Scan | None]) -> tuple[Tensor, float]:
        """The channels of a case at the plan's grid, and the value outside of them."""
        spec = self.spec
        first = next(scan for scan in scans if scan is not None)
        d, h, w = first.voxels.shape[1:]
        target = self.shape_of(first)
        check_resampled_size((d, h, w), first.spacing, target)
        if len(spec.channels) > 1:
            modalities = spec.modalities or [spec.modality] * len(spec.channels)
            image, fill = stacked(scans, modalities, spec.intensity)
        else:
            image, fill = prepared(first, spec.backbone.in_channels, spec.modality, spec.intensity)
        return torch.from_numpy(resize(image, target)), fill

    def unlabelled(self, scans: Scan | Sequence[Scan | None]) -> Sample[TargetT]:
        """What to predict on: one scan, or one for each channel, None where it is missing.

        UserError where there are not as many as channels, or slices and volumes are mistaken for each other.
        """
        given = [scans] if isinstance(scans, Scan) else list(scans)
        names = self.spec.channels
        if len(given) != len(names) or not any(given):
            raise UserError(f"this model takes {len(names)} channels ({', '.join(names)}), {len(given)} are given")
        first = next(scan for scan in given if scan is not None)
        d, h, w = first.voxels.shape[1:]
        images = first.frames and self.frames_apart
        if (d == 1) != self.spec.plan.is_2d and not (images and self.spec.plan.is_2d):
            kinds = ("a single slice", "volumes") if d == 1 else (f"a volume of {d} slices", "single slices")
            raise UserError(f"the scan is {kinds[0]}, this model takes {kinds[1]}")
        image, fill = self.prepare(given)
        present = torch.tensor([scan is not None for scan in given])
        hidden = None if present.all() else present
        volume = voxel_mm3(first)
        return Sample(image, fill, (d, h, w), first.spacing, first.orientation, None, None, hidden, volume)

    def read(self, case: Case) -> tuple[Scan, Sample[TargetT]]:
        """The scan whose grid is the case's, and its sample, still without target; UserError names the source."""
        scans = read_channels(case.images)
        try:
            sample = self.unlabelled(scans)
        except UserError as error:
            raise UserError(f"{case.image}: {error}") from error
        return next(scan for scan in scans if scan is not None), sample

    def varied(
        self, images: Tensor, samples: Sequence[Sample[TargetT]], rng: np.random.Generator, config: AugmentationConfig
    ) -> Tensor:
        """Intensities of (B, C, *patch) changed, each channel for itself, and channels hidden (modality dropout)."""
        channels = len(self.spec.channels)
        if channels == 1:
            return vary_intensity(images, rng, config)
        changed = vary_intensity(images.flatten(0, 1).unsqueeze(1), rng, config).view(images.shape)
        everything = torch.ones(channels, dtype=torch.bool)
        present = torch.stack([everything if sample.present is None else sample.present for sample in samples])
        fills = torch.tensor([sample.fill for sample in samples])
        return hide_channels(changed, present, fills, rng, config.channel_dropout)

    def mirrors(self) -> list[tuple[int, ...]]:
        """Axes to flip together for each pass of a prediction; the first pass flips none."""
        axes = [axis for axis in self.spec.flip_axes if self.spec.plan.patch[axis] > 1]
        if not self.spec.inference.mirror:
            return [()]
        return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


def fitted_shape(shape: Size3D, spacing: tuple[float, float, float], plan: Plan) -> Size3D:
    """A scan scaled evenly (in mm) until it just fits into the patch; depth 1 stays."""
    extent = np.array(shape) * np.array(spacing) / np.array(plan.spacing)
    free = np.array(shape) > 1
    zoom = min(np.array(plan.patch)[free] / extent[free], default=1.0)
    sizes = np.where(free, np.clip(np.round(extent * zoom), 1, plan.patch), 1).astype(int)
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def centred(sample: Sample[Any], plan: Plan) -> Tensor:
    """The whole fitted scan in the middle of a patch: (1, C, *patch)."""
    d, h, w = sample.image.shape[1:]
    return extract(sample.image, identity_patch((d, h, w), plan.patch), sample.fill)[None]


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
