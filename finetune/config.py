"""What a fine-tuning run is told: data, task, few-shot protocol, schedule. Every option has one reader."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from scanforge.backbones.registry import BackboneConfig
from scanforge.configs.base import Config

Size = tuple[int, int, int]


class SegmentationTask(Config):
    """Label maps of integers, 0 the background."""

    name: Literal["segmentation"] = "segmentation"
    classes: list[str] | None = None  # names of labels 1..n; None: read from the label maps


class ClassificationTask(Config):
    """One class per scan, from a CSV file."""

    name: Literal["classification"] = "classification"
    id_column: str | None = None  # stem or file name of the scan; None: the first of id, file, image, name
    label_column: str = "class"
    classes: list[str] | None = None  # None: the values of the column, sorted


class DetectionTask(Config):
    """Boxes of findings, from a folder of masks or a CSV file of boxes."""

    name: Literal["detection"] = "detection"
    id_column: str | None = None
    classes: list[str] | None = None  # of findings; in a mask the names of the values 1..n. None: one, 'finding'
    masks: Literal["components", "instances"] = "components"  # instances: each value of a mask is one finding
    whole_scan: bool | None = None  # scans scaled to fit the patch, or windows; None: by the size of the findings
    min_voxels: int = Field(default=16, ge=1)  # connected components of a mask below this are no finding
    score_threshold: float = Field(default=0.05, ge=0, lt=1)  # boxes below are not kept
    boxes_per_scan: int = Field(default=50, ge=1)


Task = Annotated[SegmentationTask | ClassificationTask | DetectionTask, Field(discriminator="name")]


class LabelledData(Config):
    """Where scans and labels lie."""

    images: Path
    labels: Path  # folder of label maps or masks, or CSV file
    modality: str  # 'ct' is clipped in HU; every other one is normalised by its percentiles
    patient_regex: str | None = None  # its first group in the path is the patient; None: one scan, one patient
    key_file: Path | None = None  # key of the site, the one the shards were built with


class SplitConfig(Config):
    """Who is tested on. The rule is pre-training's `data.holdout`, so equal fractions keep the patients apart."""

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    allow_pretraining_overlap: bool = False  # transductive: test patients may have been pre-trained on, unlabelled


class ScheduleConfig(Config):
    """Optimisation of one cell. None: the default of the backbone, see `training.recipe`."""

    steps: int = Field(default=1000, ge=1)
    minutes: float | None = Field(default=None, gt=0)  # end a cell after this time, the learning rate annealed in time
    optimiser: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    encoder_lr_scale: float = Field(default=1.0, ge=0)  # of a pre-trained encoder; the scratch arm always takes 1
    warmup_steps: int = Field(default=50, ge=0)
    frozen_steps: int = Field(default=0, ge=0)  # the pre-trained encoder stands still this long, then warms up
    clip_norm: float = Field(default=12.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of training; auto: bfloat16 where it is fast
    foreground: float = Field(default=0.5, ge=0, le=1)  # share of segmentation patches centred on a labelled voxel


class AugmentationConfig(Config):
    """Random changes of training samples. Axes: 0 = D, 1 = H, 2 = W."""

    flip_axes: list[int] = []  # axes along which the anatomy may be mirrored
    rotation: float = Field(default=15.0, ge=0, le=180)  # degrees, at most; not for boxes
    scale: float = Field(default=0.2, ge=0, lt=1)  # zoom within 1/(1+scale)..1+scale
    probability: float = Field(default=0.5, ge=0, le=1)  # of the spatial change, and of each intensity change
    gamma: float = Field(default=0.3, ge=0, lt=1)
    brightness: float = Field(default=0.2, ge=0)  # in standard deviations
    contrast: float = Field(default=0.25, ge=0, lt=1)
    noise: float = Field(default=0.1, ge=0)

    @field_validator("flip_axes")
    @classmethod
    def _axes(cls, value: list[int]) -> list[int]:
        if any(axis not in (0, 1, 2) for axis in value) or len(set(value)) < len(value):
            raise ValueError("axes are 0 (D), 1 (H) and 2 (W), each once")
        return value


class PlanOverrides(Config):
    """Values the planner would choose itself."""

    patch: Size | None = None
    batch: int | None = Field(default=None, ge=1)
    spacing: tuple[float, float, float] | None = None


class InferenceConfig(Config):
    """Prediction of whole scans."""

    overlap: float = Field(default=0.5, ge=0, lt=1)
    mirror: bool = False  # mean over all mirrorings along augmentation.flip_axes


class FinetuneConfig(Config):
    """A few-shot study: every number of shots, every seed, from the checkpoint and from scratch."""

    run_dir: Path
    task: Task
    data: LabelledData
    checkpoint: Path | None = None  # pre-training run folder or safetensors file
    backbone: BackboneConfig | None = None  # from scratch only; a checkpoint brings its own
    compare_scratch: bool = True  # beside a checkpoint: the same cases and steps from random weights
    shots: list[Annotated[int, Field(ge=1)] | Literal["all"]] = [5]
    seeds: list[Annotated[int, Field(ge=0)]] = [0]
    split: SplitConfig = SplitConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    plan: PlanOverrides = PlanOverrides()
    inference: InferenceConfig = InferenceConfig()
    bootstrap: int = Field(default=1000, ge=10)  # resamples behind each interval
    worst_cases: int = Field(default=6, ge=0)  # pictures in the report
    keep_weights: Literal["best", "all"] = "best"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> "FinetuneConfig":
        if self.checkpoint is None and self.backbone is None:
            raise ValueError("give a checkpoint, or a backbone to train from scratch")
        if self.checkpoint is not None and self.backbone is not None:
            raise ValueError("a checkpoint brings its own backbone: leave out 'backbone'")
        if not self.shots or not self.seeds:
            raise ValueError("'shots' and 'seeds' need one value each at least")
        if len(set(self.shots)) < len(self.shots) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("'shots' and 'seeds' must not repeat a value")
        return self

    @property
    def arms(self) -> list[str]:
        """'checkpoint' and 'scratch', as far as this run has them."""
        if self.checkpoint is None:
            return ["scratch"]
        return ["checkpoint", "scratch"] if self.compare_scratch else ["checkpoint"]
