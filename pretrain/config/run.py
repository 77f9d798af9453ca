"""One pre-training run, on one screen."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.backbones.transfer.adapt import AdaptConfig
from scanfoundry.configs.base import Config, Seed
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.pretrain.config.probes import ProbeConfigs
from scanfoundry.pretrain.config.profile import ProfileConfig
from scanfoundry.pretrain.config.wandb import WandbConfig
from scanfoundry.pretrain.engine.averaged_encoder import EmaConfig
from scanfoundry.pretrain.engine.engine import EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
from scanfoundry.pretrain.objectives import ObjectiveConfig
from scanfoundry.pretrain.objectives.protocol import ObjectiveOptions

# What may differ between a run and its continuation without changing what is computed, or by the user's wish.
FREE_TO_CHANGE = {
    "steps",
    "checkpoint_every",
    "keep_last",
    "background_checkpoints",
    "picture_every",
    "monitor_every",
    "monitor_crops",
    "probes",
    "log_every",
    "wandb",
    "tensorboard",
    "profile",
    "peak_tflops",
    "run_dir",
    "threads",
    "step_timeout_s",
    "max_bad_steps",
    "device",
    "licence",
    "citation",
}


class PretrainConfig(Config):
    """`scanfoundry pretrain` reads this from YAML; `configs/pretrain/*.yaml` are examples."""

    model_config = ConfigDict(defer_build=True)  # until what plug-ins add can be imported, see `ByName`
    run_dir: Path
    seed: Seed = 0
    backbone: BackboneConfig
    init: str | None = None  # weights to start from: a run folder, a file, or an installed model; None: random ones
    adapt: AdaptConfig = AdaptConfig()  # `init` for larger kernels, or for scans of the other dimension
    objective: ObjectiveConfig
    data: DataConfig
    optimiser: OptimiserConfig = Field(default=OptimiserConfig(), validate_default=True)
    engine: EngineConfig = EngineConfig()
    ema: EmaConfig | None = None  # release an average of the encoder over the steps
    steps: int = Field(ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_last: int = Field(default=3, ge=1)
    background_checkpoints: bool = True  # False: steps wait for them, and the host needs no memory for a copy
    picture_every: int = Field(default=0, ge=0)  # 0: one picture, at the end
    monitor_every: int = Field(default=0, ge=0)  # steps between looks for a collapse; 0: at checkpoints
    monitor_crops: int = Field(default=64, ge=0)  # of each kind that they look at; 0: no monitors
    probes: ProbeConfigs = []  # labelled tasks that the frozen encoder is tried on; see docs/objectives.md
    log_every: int = Field(default=1, ge=1)
    max_bad_steps: int = Field(default=10, ge=1)  # non-finite losses in a row before the run stops
    threads: int | None = Field(default=None, ge=1)  # CPU threads per process; None: cores / local processes
    step_timeout_s: float = Field(default=1800, gt=0)  # a rank that finishes no step for so long ends, with its stacks
    device: Literal["auto", "cpu", "cuda"] = "auto"
    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = False  # the same numbers as event files in the run folder; needs scanfoundry[tensorboard]
    profile: ProfileConfig | None = None  # a trace of some steps; {} for the default ones
    peak_tflops: float | None = Field(
        default=None, gt=0
    )  # of one device at the run's precision, for MFU; None: by name
    licence: str | None = None  # of the data, recorded beside the released weights
    citation: str | None = None

    @field_validator("optimiser")
    @classmethod
    def _fill_in(cls, value: OptimiserConfig, info: ValidationInfo) -> OptimiserConfig:
        backbone = info.data.get("backbone")  # absent where it was refused, which is reported already
        if backbone is None:
            return value
        return value.filled(backbone.family)

    @field_validator("objective")
    @classmethod
    def _filled_for_the_backbone(cls, value: ObjectiveOptions, info: ValidationInfo) -> ObjectiveOptions:
        backbone = info.data.get("backbone")
        return value if backbone is None else value.filled(backbone.family)

    @model_validator(mode="after")
    def _adapts_what_is_there(self) -> "PretrainConfig":
        if self.init is None and self.adapt.asked:
            raise ValueError("'adapt' is for the weights of 'init': leave it out, or set init")
        return self

    @model_validator(mode="after")
    def _warm_up_ends_before_the_run(self) -> "PretrainConfig":
        if self.optimiser.warmup_steps >= self.steps:
            raise ValueError(
                f"optimiser.warmup_steps ({self.optimiser.warmup_steps}) must be below steps ({self.steps}): "
                f"set optimiser.warmup_steps={self.steps // 10}"
            )
        return self
