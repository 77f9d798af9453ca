"""The plan: grid, patch and batch from the fingerprint of the scans; written down, and the user's to edit."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_json
from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.configs.parsing.checking import explain
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.volumes import target_shape
from scanfoundry.finetune.config.study import PlanOverrides

PATCH_3D, PATCH_2D = 96**3, 256**2  # voxels of a patch, at most, where the user asks for no other
BATCH_VOXELS_3D, BATCH_VOXELS_2D = 2 * 96**3, 12 * 256**2
FINGERPRINT_SCANS = 200


class Fingerprint(Config):
    """Median geometry of the training pool (images alone; no label is looked at)."""

    scans: int
    shape: tuple[float, float, float]  # at their own spacing
    spacing: tuple[float, float, float]  # mm
    is_2d: bool


class Plan(Config):
    """What the run is trained at. Edit `plan.json` and start again: changed cells are trained anew."""

    spacing: tuple[float, float, float]  # segmentation is resampled to it where an axis differs by over 10%
    patch: PositiveSize3D  # cropped, or (classification, detection of large findings) what scans are scaled to fit
    batch: int = Field(ge=1)
    fingerprint: Fingerprint

    @property
    def is_2d(self) -> bool:
        """Whether the scans have depth 1."""
        return self.patch[0] == 1


def fingerprint(images: Sequence[ScanSource]) -> Fingerprint:
    """Medians over the scans (an even sample of them where there are many); UserError for 2D and 3D mixed."""
    step = max(1, len(images) // FINGERPRINT_SCANS)
    found = [(scan.voxels.shape[1:], scan.spacing) for scan in (image.read() for image in images[::step])]
    shapes = np.array([shape for shape, _ in found])
    flat = shapes[:, 0] == 1
    if flat.any() != flat.all():
        odd = images[::step][int(np.flatnonzero(flat == (flat.mean() < 0.5))[0])]
        kind = "a single slice" if flat.mean() < 0.5 else "a volume"
        raise UserError(f"the images mix single slices and volumes ({odd} is {kind}); give one kind")
    d, h, w = (float(x) for x in np.median(shapes, axis=0))
    z, y, x = (float(x) for x in np.median([spacing for _, spacing in found], axis=0))
    return Fingerprint(scans=len(found), shape=(d, h, w), spacing=(z, y, x), is_2d=bool(flat.all()))


def make_plan(found: Fingerprint, overrides: PlanOverrides, encoder: Encoder) -> Plan:
    """Spacing: the median. Patch: the median shape at it, shrunk evenly to a budget, a multiple of the stride.
    Batch: as many patches as fit a budget, 2 to 12."""
    spacing = overrides.spacing or found.spacing
    d, h, w = (round(size) for size in found.shape)
    median = np.array(target_shape((d, h, w), found.spacing, spacing)).astype(np.float64)
    divisor = np.array(encoder.size_divisor(found.is_2d))
    budget = PATCH_2D if found.is_2d else PATCH_3D
    axes = 2 if found.is_2d else 3
    shrink = min(1.0, (budget / median.prod()) ** (1 / axes))
    sizes = np.maximum(1, np.ceil(median * np.where(median > 1, shrink, 1.0) / divisor - 1e-6)) * divisor
    patch: PositiveSize3D = overrides.patch or (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    if any(size % step for size, step in zip(patch, divisor, strict=True)) or (patch[0] == 1) != found.is_2d:
        kind = "(1, H, W)" if found.is_2d else "(D, H, W)"
        raise UserError(f"plan.patch {patch} must be {kind} in multiples of {tuple(int(x) for x in divisor)}")
    encoder.check_input(patch)
    voxels = BATCH_VOXELS_2D if found.is_2d else BATCH_VOXELS_3D
    batch = overrides.batch or int(np.clip(voxels // np.prod(patch), 2, 12))
    return Plan(spacing=spacing, patch=patch, batch=batch, fingerprint=found)


def settle_plan(path: Path, images: Sequence[ScanSource], overrides: PlanOverrides, encoder: Encoder) -> Plan:
    """The plan in `path` where there is one (with the overrides on top), else a new one, written there."""
    if path.exists():
        try:
            stored = Plan.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:
            why = "; ".join(explain(Plan, error)) if isinstance(error, ValidationError) else str(error)
            raise UserError(f"{path} is not a plan: {' '.join(why.split())[:200]}; mend or delete it") from error
        kept = {"spacing": stored.spacing, "patch": stored.patch, "batch": stored.batch}
        given = overrides.model_dump(exclude_none=True)
        plan = make_plan(stored.fingerprint, PlanOverrides.model_validate(kept | given), encoder)
    else:
        plan = make_plan(fingerprint(images), overrides, encoder)
    write_json(path, plan.model_dump())
    return plan
