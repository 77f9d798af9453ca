"""The sampling plan: which crop every sample of every optimiser step is, as a pure function of (seed, epoch, position).

No state is kept: any step can be asked for at any time, on any rank, and gives the same answer. That is what makes
resume exact after any kill, the global stream independent of world size and of worker count, and the reissue of a
dead worker's task trivial.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from scanforge.configs.base import Config
from scanforge.datasets.intensity import IntensityConfig

Share = Annotated[float, Field(ge=0, le=1)]


class SourceConfig(Config):
    """One data set (a folder that `scanforge data build` made) in the mixture."""

    name: str
    path: Path
    weight: Annotated[float, Field(gt=0)] = 1.0
    flip_axes: list[Annotated[int, Field(ge=0, le=2)]] = []  # 0 = D, 1 = H, 2 = W; only where anatomy allows


class DataConfig(Config):
    """What pre-training reads. A source's share of the crops is proportional to weight * scans**temperature.

    temperature 1: every scan is as likely as any other; 0: every source is. batch_2d and batch_3d are global sizes:
    they do not change with the number of ranks. Images serve crop_2d; volumes serve crop_3d or, where that is
    not set, give slices to crop_2d.
    """

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    temperature: Share = 1.0
    crop_2d: tuple[PositiveInt, PositiveInt] | None = None  # H, W
    crop_3d: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None  # D, H, W
    batch_2d: PositiveInt = 32
    batch_3d: PositiveInt = 4
    channels: Annotated[int, Field(ge=1, le=3)] = 1
    crops_per_visit: PositiveInt = 1  # consecutive crops of one scan: cheaper reads, less variety in a batch
    foreground: Share = 0.9  # share of crops that are centred on foreground; the others lie anywhere
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of patients that is never sampled
    workers: Annotated[int, Field(ge=0)] = 2
    ring: Annotated[int, Field(ge=2)] = 4  # batches in shared memory; it grows up to four times this
    bad_sample_ceiling: Share = 0.01  # share of scans that may prove damaged before the run stops
    intensity: IntensityConfig = IntensityConfig()
    window: PositiveInt = 16  # shards that are shuffled together, and so held open at a time
    steps_per_epoch: PositiveInt | None = None  # default: as many as visit each scan once

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("two sources have the same name")
        if self.crop_2d is None and self.crop_3d is None:
            raise ValueError("set crop_2d, crop_3d or both")
        if self.channels == 2:
            raise ValueError("channels is 1 (grey) or 3 (RGB)")
        return self
