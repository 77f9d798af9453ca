"""A case at the plan's grid, as a task takes it, and what was predicted of cases that were held back."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from scanfoundry.configs.geometry import Size3D, Spacing3D
from scanfoundry.datasets.augment.window import extract, identity_patch
from scanfoundry.finetune.cases.volumes import Labels
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.plan import Plan

TargetT = TypeVar("TargetT")


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
