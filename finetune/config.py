"""What a fine-tuning run is told: data, task, few-shot protocol, schedule. Every option has one reader."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from scanforge.backbones.registry import BackboneConfig
from scanforge.configs.base import Config
from scanforge.finetune.budget import Seconds
from scanforge.finetune.recipes import Arm, LoraConfig, ProbeConfig, RecipeName, check_recipe

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
    """Boxes of one kind of finding, from a folder of masks or a CSV file of boxes."""

    name: Literal["detection"] = "detection"
    id_column: str | None = None
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
    """Optimisation of one cell. None: the default of the backbone, see `optimisation.preset`."""

    steps: int = Field(default=1000, ge=1)
    minutes: float | None = Field(default=None, gt=0)  # end a cell after this time, the learning rate annealed in time
    optimiser: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    encoder_lr_scale: float = Field(default=1.0, ge=0)  # of a pre-trained encoder; the scratch arm always takes 1
    warmup_steps: int = Field(default=50, ge=0)
    frozen_steps: int = Field(default=0, ge=0)  # recipe 'staged': the encoder stands still so long; 0: a fifth
    average: float = Field(
        default=0.0, ge=0, lt=1
    )  # momentum of the average that is kept; 0: the last weights
    clip_norm: float = Field(default=12.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of training; auto: bfloat16 where it is fast
    foreground: float = Field(default=0.5, ge=0, le=1)  # share of segmentation patches centred on a labelled voxel


class ValidationConfig(Config):
    """What is held back of the training cases, by patient: to choose weights, temperature and post-processing."""

    folds: int = Field(default=1, ge=1)  # from 2 on: so many models, each without one fold, that predict together
    fraction: float = Field(default=0.0, ge=0, lt=1)  # held back from the one model; 0: nothing is
    checks: int = Field(default=10, ge=1)  # looks at the held-back cases in a training; the best weights are kept
    patience: int | None = Field(default=None, ge=1)  # end after so many checks without a better one
    postprocess: bool = True  # remove small components and all but the largest where that helps the held-back cases
    calibrate: bool = True  # fit a temperature to the held-back probabilities of classes

    @model_validator(mode="after")
    def _one_way(self) -> "ValidationConfig":
        if self.folds > 1 and self.fraction:
            raise ValueError("give validation.folds or validation.fraction, not both: each fold is held back in turn")
        return self

    @property
    def any(self) -> bool:
        """Whether cases are held back."""
        return self.folds > 1 or self.fraction > 0


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
    recipes: list[RecipeName] = ["full"]  # how the checkpoint is adapted; the first one's model is kept
    compare_scratch: bool = True  # beside a checkpoint: the same cases and steps from random weights
    shots: list[Annotated[int, Field(ge=1)] | Literal["all"]] = [5]
    seeds: list[Annotated[int, Field(ge=0)]] = [0]
    split: SplitConfig = SplitConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    budget: Seconds | None = None  # '10min': of the whole study, training and testing; in place of schedule.steps
    validation: ValidationConfig = ValidationConfig()
    lora: LoraConfig = LoraConfig()
    probe: ProbeConfig = ProbeConfig()
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
        self._check_recipes()
        if self.budget and (self.schedule.minutes or "steps" in self.schedule.model_fields_set):
            raise ValueError(
                "'budget' decides how long each cell trains: leave out schedule.steps and schedule.minutes"
            )
        if not self.shots or not self.seeds:
            raise ValueError("'shots' and 'seeds' need one value each at least")
        if len(set(self.shots)) < len(self.shots) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("'shots' and 'seeds' must not repeat a value")
        return self

    def _check_recipes(self) -> None:
        if not self.recipes or len(set(self.recipes)) < len(self.recipes):
            raise ValueError("'recipes' needs one at least, each once")
        if self.checkpoint is None and self.recipes != ["full"]:
            raise ValueError("from scratch everything is trained: 'recipes' are for a checkpoint")
        if self.schedule.frozen_steps and "staged" not in self.recipes:
            raise ValueError("schedule.frozen_steps is for recipe 'staged'")
        for name in self.recipes:
            check_recipe(name, self.task.name)

    @property
    def arms(self) -> list[Arm]:
        """The checkpoint by each recipe, and training from scratch, as far as this run has them."""
        scratch = Arm("scratch", "full", pretrained=False)
        if self.checkpoint is None:
            return [scratch]
        adapted = [Arm(name, name, pretrained=True) for name in self.recipes]
        return [*adapted, scratch] if self.compare_scratch else adapted
