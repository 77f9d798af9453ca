"""What a probe is: its kind, how often it runs, on which labelled scans."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from scanfoundry.configs.base import Config

Crop = tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt]


class ProbeDataConfig(Config):
    """Labelled scans: shards made by `scanfoundry data build --labels` or `--masks`.

    Their crops are read once and kept, shared out over the ranks: scans * voxels of a crop * (4 * channels + 1) bytes
    at most, and 8 bytes a voxel where masks are needed. Patients whose hash, as a number in [0, 1), is below
    `test_fraction` are tested on, all others trained on; the same rule holds patients out of pre-training
    (`data.holdout`), whose share it takes by default.
    """

    path: Annotated[str, BeforeValidator(str)]  # a folder or URL
    crop: Crop  # H, W (of a volume: one slice) or D, H, W
    scans: PositiveInt = 128  # at most, patient by patient, in the order of another hash
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None  # default: data.holdout, or 0.3 where that is 0


class _ProbeConfig(Config):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None  # default: the kind
    every: Annotated[int, Field(ge=0)] = 0  # steps; 0: at checkpoints. It runs after the last step too
    data: ProbeDataConfig


class KnnConfig(_ProbeConfig):
    """Weighted nearest neighbours by cosine (Wu et al. 2018, arXiv 1805.01978, section 3.4; settings of DINO)."""

    kind: Literal["knn"]
    target: str | None = None  # which of the scans' classes, where they have several
    neighbours: PositiveInt = 20  # at most as many as there are training scans
    temperature: Annotated[float, Field(gt=0)] = 0.07


class LinearConfig(_ProbeConfig):
    """Logistic regression on the pooled features, its regularisation chosen among folds of the training patients."""

    kind: Literal["linear"]
    target: str | None = None


class SegmentationConfig(_ProbeConfig):
    """A 1x1 convolution on the encoder's up-sampled feature maps, fitted as ridge regression, scored by Dice.

    Crops lie on the labelled region where a scan is larger: the probe asks for outlines, not for where an organ is.
    """

    kind: Literal["segmentation"]
    points: PositiveInt = 512  # voxels of each training scan that it is fitted to, shared out over the scan's classes


def title(config: "ProbeConfig") -> str:
    """The name under which a probe's numbers are logged: probe/<title>/<metric>."""
    return config.name or config.kind


def _names_differ(probes: list["ProbeConfig"]) -> list["ProbeConfig"]:
    titles = [title(probe) for probe in probes]
    if len(set(titles)) < len(titles):
        raise ValueError(f"two probes have the same name ({', '.join(titles)}); give each its own `name`")
    return probes


ProbeConfig = Annotated[KnnConfig | LinearConfig | SegmentationConfig, Field(discriminator="kind")]
ProbeConfigs = Annotated[list[ProbeConfig], AfterValidator(_names_differ)]
