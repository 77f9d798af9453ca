"""What a fine-tuning run is told: data, task, few-shot protocol, schedule. Every option has one reader."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, PositiveFloat, field_validator, model_validator

from scanfoundry.backbones.layers.segmentation import PARTS, Part
from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.backbones.transfer.adapt import AdaptConfig
from scanfoundry.configs.base import Config, Seed
from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.datasets.modality import Modality
from scanfoundry.finetune.config.distil import DistilConfig
from scanfoundry.finetune.config.loss import LossConfig
from scanfoundry.finetune.config.recipes import GENTLE, PROBES, Arm, LoraConfig, ProbeConfig, RecipeName
from scanfoundry.finetune.config.tasks.registry import Task, tasks
from scanfoundry.finetune.config.time import Seconds
from scanfoundry.finetune.config.unread_options import OF_PRETRAINED, OF_RECIPES, check_no_unread_options

Format = Literal["auto", "folders", "channels", "dataset", "list", "archive", "shards"]


class LabelledData(Config):
    """Where scans and labels lie; see docs/finetuning.md for what is read.

    Patients and scans are hashed by their path below the folder that is given here, as `scanfoundry data build` of that
    folder does: only then are patients of the pre-training recognised.
    """

    path: str | None = None  # what holds scans and labels: dataset.json or its folder, a list, an .npz, shards (or URL)
    images: Path | None = None  # folder of scans whose labels lie elsewhere, or a pattern ('img_*.png')
    labels: Path | list[Path] | None = None  # masks, CSV, COCO, VOC, names of mask values; a pattern
    format: Format = "auto"
    channels: dict[str, str] | None = None  # name: pattern ('*/t1.nii.gz') or folder; of a list: its column
    allow_missing: bool = False  # cases may lack channels (but never all)
    colour: bool | None = None  # whether images in colour stay so; None: from scratch, or where the checkpoint has them
    modality: Modality | dict[str, Modality] | None = None  # of all or by name; None: where the data set tells it
    patient_regex: str | None = None  # its first group in the path is the patient; None: see identity.patient_of
    key_file: Path | None = None  # key of the site, the one the shards were built with

    @model_validator(mode="after")
    def _consistent(self) -> "LabelledData":
        if self.path is not None and self.images is not None:
            raise ValueError("give data.path (a whole data set) or data.images (with data.labels), not both")
        if self.channels is not None and not self.channels:
            raise ValueError("data.channels names no channel")
        return self

    @property
    def where(self) -> str:
        """The folder, file or URL that was given; '' where none was."""
        return self.path or (str(self.images) if self.images else "")

    @property
    def label_paths(self) -> list[Path]:
        """`labels` as a list."""
        return list(self.labels) if isinstance(self.labels, list) else [self.labels] if self.labels else []


class SplitConfig(Config):
    """Who is tested on. By default the rule of pre-training's `data.holdout`: equal fractions keep the patients apart.

    `file` and `official` override it.
    """

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    file: Path | None = None  # JSON: {"train": [ids], "test": [ids]}, or nnU-Net's splits_final.json
    fold: int = Field(default=0, ge=0)  # of splits_final.json: its 'val' is tested on
    official: bool = False  # the data set's own test split (MedMNIST, a column 'split', imagesTs)
    allow_pretraining_overlap: bool = False  # transductive: test patients may have been pre-trained on, unlabelled

    @model_validator(mode="after")
    def _consistent(self) -> "SplitConfig":
        if self.file is not None and self.official:
            raise ValueError("give split.file or split.official, not both")
        return self


class ScheduleConfig(Config):
    """Optimisation of one cell. None: the default of the backbone, see `optimisation.preset`."""

    steps: int = Field(default=1000, ge=1)
    optimiser: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    # Of the arms that start from a checkpoint; the scratch arm always takes 1 for each:
    pretrained_lr_scale: float | None = Field(default=None, gt=0)  # of `lr`; None: by recipe, `optimisation.scales_of`
    encoder_lr_scale: float = Field(default=1.0, ge=0)  # of the encoder beside the rest
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # of a block of the encoder beside the block behind it
    decoder_lr_scale: float | None = Field(default=None, gt=0)  # 'sawtooth': of its first part; None: by family
    warmup_share: float = Field(default=0.05, ge=0, lt=1)  # recipes 'warmup', 'sawtooth': of the training, for all
    decoder_share: float = Field(default=0.05, gt=0, lt=1)  # recipe 'sawtooth': of the training, before that
    warmup_steps: int = Field(default=50, ge=0)  # of the other recipes, and from scratch
    frozen_steps: int = Field(default=0, ge=0)  # recipe 'staged': the encoder stands still so long; 0: a fifth
    average: float = Field(default=0.0, ge=0, lt=1)  # momentum of the average that is kept; 0: the last weights
    clip_norm: float = Field(default=12.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of training; auto: bfloat16 where it is fast
    foreground: float = Field(default=0.5, ge=0, le=1)  # share of segmentation patches centred on a labelled voxel

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.warmup_share + self.decoder_share >= 1:
            raise ValueError("warmup_share and decoder_share leave nothing of the training: lower them")
        return self


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


class SelfTrainingConfig(Config):
    """Scans without a label take part in the training of a segmentation with the labels that the model of the moment
    gives them: of the training patients that are not among the shots (whose own labels are not used), and of the data
    set's patients without a label; never of test patients. See benchmarks/results/finetuning.md for what it is worth.
    """

    rounds: int = Field(default=0, ge=0)  # times that they are labelled anew, spread over what is left; 0: they rest
    start: float = Field(default=0.25, gt=0, lt=1)  # share of the training before the first time
    min_steps: int = Field(default=400, ge=0)  # before the first time: labels of a network that knows little do harm
    share: float = Field(default=0.5, gt=0, lt=1)  # of the training samples, from then on
    scans: int = Field(default=200, ge=1)  # at most, drawn by the seed


class AugmentationConfig(Config):
    """Random changes of training samples. Axes: 0 = D, 1 = H, 2 = W."""

    flip_axes: list[int] = []  # axes along which the anatomy may be mirrored
    rotation: float = Field(default=15.0, ge=0, le=180)  # degrees, at most; not for boxes
    scale: float = Field(default=0.2, ge=0, lt=1)  # zoom within 1/(1+scale)..1+scale
    elastic: float = Field(default=0.0, ge=0, lt=0.4)  # see `augmentation.random_warp`; not for boxes
    probability: float = Field(default=0.5, ge=0, le=1)  # of each spatial change, and of each of intensity
    gamma: float = Field(default=0.3, ge=0, lt=1)
    brightness: float = Field(default=0.2, ge=0)  # in standard deviations
    contrast: float = Field(default=0.25, ge=0, lt=1)
    noise: float = Field(default=0.1, ge=0)
    coarser: float = Field(default=1.0, ge=1)  # voxels up to so many times as large along each axis, and back
    channel_dropout: float = Field(default=0.0, ge=0, lt=1)  # of each channel of a sample, never of all of them
    mixup: float = Field(default=0.0, ge=0)  # of each batch of a classification, see `cases.mixing`; 0: none
    cutmix: float = Field(default=0.0, ge=0)  # as mixup; of both one is drawn for each batch

    @property
    def mixes(self) -> bool:
        """Whether the scans of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @field_validator("flip_axes")
    @classmethod
    def _axes(cls, value: list[int]) -> list[int]:
        if any(axis not in (0, 1, 2) for axis in value) or len(set(value)) < len(value):
            raise ValueError("axes are 0 (D), 1 (H) and 2 (W), each once")
        return value


class PlanOverrides(Config):
    """Values the planner would choose itself."""

    patch: PositiveSize3D | None = None
    batch: int | None = Field(default=None, ge=1)
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None


class InferenceConfig(Config):
    """Prediction of whole scans."""

    overlap: float = Field(default=0.5, ge=0, lt=1)
    mirror: bool = False  # mean over all mirrorings along augmentation.flip_axes


StartName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")]
Shots = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | Literal["all"]


class FinetuneConfig(Config):
    """A few-shot study: every number of shots, every seed, from the checkpoint and from scratch."""

    model_config = ConfigDict(defer_build=True)  # until what plug-ins add can be imported, see `ByName`
    rivals: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "budget": {"schedule.steps": ("schedule.steps",)},
        "schedule.steps": {"budget": ("budget",)},
        "checkpoint": {"backbone": ("backbone",)},
        "backbone": {
            "checkpoint": ("checkpoint", "recipes"),
            "recipes": ("recipes",),
            **{f"schedule.{key}": (f"schedule.{key}",) for key in (*OF_PRETRAINED, "frozen_steps")},
        },
        "data.path": {"data.images": ("data.images", "data.labels")},
        "data.images": {"data.path": ("data.path",)},
        "split.file": {"split.official": ("split.official",), "split.test_fraction": ("split.test_fraction",)},
        "split.official": {
            "split.file": ("split.file", "split.fold"),
            "split.test_fraction": ("split.test_fraction",),
        },
        "split.test_fraction": {"split.file": ("split.file", "split.fold"), "split.official": ("split.official",)},
        "validation.folds": {"validation.fraction": ("validation.fraction",)},
        "validation.fraction": {"validation.folds": ("validation.folds",)},
    }

    run_dir: Path
    task: Task
    data: LabelledData
    checkpoint: Path | dict[StartName, Path] | None = None  # run folder or file; several by names that compare them
    backbone: BackboneConfig | None = None  # from scratch, or with adapt.kernel; else a checkpoint brings its own
    adapt: AdaptConfig = AdaptConfig()  # the checkpoint for larger kernels, or for scans of the other dimension
    transfer: list[Part] = [*PARTS]  # of the checkpoint that are used, where they are there and fit; encoder always
    checkpoint_classes: list[str] = []  # names of the classes of its head, in order, where its file has none
    recipes: list[RecipeName] = ["full"]  # how the checkpoint is adapted; the first one's model is kept
    compare_scratch: bool = True  # beside a checkpoint: the same cases and steps from random weights
    shots: list[Shots] = [5]  # patients (of each class), a share of them (0.1), or all
    seeds: list[Seed] = [0]
    split: SplitConfig = SplitConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    budget: Seconds | None = None  # '10min': of the whole study, training and testing; in place of schedule.steps
    validation: ValidationConfig = ValidationConfig()
    loss: LossConfig = LossConfig()
    lora: LoraConfig = LoraConfig()
    probe: ProbeConfig = ProbeConfig()
    self_training: SelfTrainingConfig = SelfTrainingConfig()
    distil: DistilConfig = DistilConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    plan: PlanOverrides = PlanOverrides()
    inference: InferenceConfig = InferenceConfig()
    bootstrap: int = Field(default=1000, ge=10)  # resamples behind each interval
    worst_cases: int = Field(default=6, ge=0)  # pictures in the report
    keep_weights: Literal["best", "all"] = "best"
    checkpoint_minutes: float = Field(default=5.0, ge=0)  # work that a kill may cost, about; 0: saved after every step
    sample_cache_gb: float = Field(default=50.0, ge=0)  # 10^9 bytes of read cases in run_dir until the end; 0: none
    processes: int = Field(default=1, ge=1)  # that run trials at the same time, each with all of torch's threads
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> "FinetuneConfig":
        if self.checkpoint is None and self.backbone is None:
            raise ValueError("give a checkpoint, or a backbone to train from scratch")
        self._check_starts()
        self._check_adapt()
        self._check_recipes()
        self.task.check_loss(self.loss)
        if self.self_training.rounds and not self.task.self_training:
            able = " and ".join(name for name, parts in tasks().items() if parts.config.self_training)
            raise ValueError(f"self_training is for {able}: leave it out")
        if self.budget and self.schedule.steps != ScheduleConfig().steps:
            raise ValueError("'budget' decides how long each trial trains: leave out schedule.steps")
        check_no_unread_options(self)
        if self.plan.batch == 1 and self.augmentation.mixes:
            raise ValueError("augmentation.mixup and cutmix mix the scans of a batch: raise plan.batch above 1")
        if not self.shots or not self.seeds:
            raise ValueError("'shots' and 'seeds' need one value each at least")
        if len(set(self.shots)) < len(self.shots) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("'shots' and 'seeds' must not repeat a value")
        return self

    def _check_starts(self) -> None:
        if not isinstance(self.checkpoint, dict):
            return
        if not self.checkpoint:
            raise ValueError("'checkpoint' names no model: give a path, or names with paths")
        if taken := sorted(self.checkpoint.keys() & {"scratch", *get_args(RecipeName)}):
            raise ValueError(f"'{taken[0]}' names a way of training: give the checkpoint another name")
        if self.checkpoint_classes:
            raise ValueError("'checkpoint_classes' is for a single checkpoint")

    def _check_adapt(self) -> None:
        if self.checkpoint is None and self.adapt.asked:
            raise ValueError("'adapt' is for a checkpoint: leave it out")
        if self.checkpoint is not None and self.backbone is not None and self.adapt.kernel is None:
            raise ValueError(
                "a checkpoint brings its own backbone: leave out 'backbone', or set adapt.kernel=upkern (or centre) "
                "where it is the same one with a larger kernel"
            )
        if self.adapt.kernel is not None and self.backbone is None:
            raise ValueError("adapt.kernel needs the backbone with the larger kernel: set backbone.name and .kernel")

    @classmethod
    def gives_way(cls, typed: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
        """Of the file: what belongs to another recipe or task than those that were typed."""
        told = [typed.get("task.name", typed.get("task")), content.get("task")]
        task, before = (each.get("name") if isinstance(each, dict) else each for each in told)
        idle = [] if task in (None, before) else ["self_training", "loss", "schedule.foreground", "inference.overlap"]
        if idle and isinstance(task, str) and task in tasks():
            idle += [key for key in tasks()[task].config.unread if key not in idle]
        if (recipes := typed.get("recipes")) is not None:
            named = set(re.findall(r"\w+", str(recipes)))
            idle += [f"schedule.{key}" for key, readers in OF_RECIPES.items() if not named & set(readers)]
            if named <= set(GENTLE) and not {**content, **typed}.get("compare_scratch", True):
                idle.append("schedule.warmup_steps")
        return idle

    def _check_recipes(self) -> None:
        if "encoder" not in self.transfer or len(set(self.transfer)) < len(self.transfer):
            raise ValueError("'transfer' needs the encoder, and each part once: encoder, decoder, head")
        if not self.recipes or len(set(self.recipes)) < len(self.recipes):
            raise ValueError("'recipes' needs one at least, each once")
        if self.checkpoint is None and self.recipes != ["full"]:
            raise ValueError("from scratch everything is trained: 'recipes' are for a checkpoint")
        if self.schedule.frozen_steps and "staged" not in self.recipes:
            raise ValueError("schedule.frozen_steps is for recipe 'staged'")
        probes = [name for name in self.recipes if name in PROBES]
        if probes and self.distil.teacher:
            raise ValueError(f"recipe '{probes[0]}' trains no network that a teacher could help: leave out distil")
        if self.distil.teacher and self.distil.what == "features" and "frozen" in self.recipes:
            raise ValueError("recipe 'frozen' lets the encoder rest, whose features the teacher moves: leave out one")
        if self.distil.teacher and self.distil.what == "logits" and not self.task.class_scores:
            raise ValueError(
                f"distil.what=logits is for tasks whose network gives a score of each class, and {self.task.name} has "
                "none: take distil.what=features"
            )
        if probes and not self.task.probes:
            able = " and ".join(name for name, parts in tasks().items() if parts.config.probes)
            raise ValueError(
                f"recipe '{probes[0]}' is for {able}; for {self.task.name} take full, warmup, sawtooth, staged, "
                "frozen or lora"
            )

    @property
    def starts(self) -> dict[str, Path]:
        """The checkpoints by their names; a single one has none."""
        if self.checkpoint is None:
            return {}
        return self.checkpoint if isinstance(self.checkpoint, dict) else {"": self.checkpoint}

    def _arm(self, start: str, recipe: RecipeName) -> Arm:
        name = recipe if not start else start if self.recipes == ["full"] else f"{start}_{recipe}"
        return Arm(name, recipe, pretrained=True, start=start)

    @property
    def arms(self) -> list[Arm]:
        """Each checkpoint by each recipe, and training from scratch, as far as this run has them."""
        scratch = Arm("scratch", "full", pretrained=False)
        if self.checkpoint is None:
            taught = [scratch.taught()] if self.distil.teacher else []
            return [*taught, scratch] if self.compare_scratch or not taught else taught
        adapted = [self._arm(start, recipe) for start in self.starts for recipe in self.recipes]
        if self.distil.teacher:
            adapted = [*(arm.taught() for arm in adapted), *(adapted if self.distil.compare else [])]
        return [*adapted, scratch] if self.compare_scratch else adapted
