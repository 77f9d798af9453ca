"""The plan: grid, patch and batch from the fingerprint of the scans; written down, and the user's to edit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_json
from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.configs.parsing.checking import explain
from scanfoundry.finetune.cases.cases import Case, Grid
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
    """What the run is trained at. Edit `plan.json` and start again: trials that it changes are trained anew."""

    spacing: tuple[float, float, float]  # segmentation is resampled to it where an axis differs by over 10%
    patch: PositiveSize3D  # cropped, or (classification, detection of large findings) what scans are scaled to fit
    batch: int = Field(ge=1)
    fingerprint: Fingerprint

    @property
    def is_2d(self) -> bool:
        """Whether the scans have depth 1."""
        return self.patch[0] == 1


def fingerprint(cases: Sequence[Case], known: Mapping[str, Grid]) -> Fingerprint:
    """The median geometry of the cases.

    Args:
        cases: the training pool; of many cases an even sample is looked at.
        known: the grids of cases that were read before, by key. Other cases are read here.

    Raises:
        UserError: a scan cannot be read, or single slices and volumes are mixed.
    """
    step = max(1, len(cases) // FINGERPRINT_SCANS)
    found = [known.get(case.key) or _grid_of(case) for case in cases[::step]]
    shapes = np.array([grid.shape for grid in found])
    flat = shapes[:, 0] == 1
    if flat.any() != flat.all():
        odd = found[int(np.flatnonzero(flat == (flat.mean() < 0.5))[0])]
        kind = "a single slice" if flat.mean() < 0.5 else "a volume"
        raise UserError(f"the images mix single slices and volumes ({odd.name} is {kind}); give one kind")
    d, h, w = (float(x) for x in np.median(shapes, axis=0))
    z, y, x = (float(x) for x in np.median([grid.spacing for grid in found], axis=0))
    return Fingerprint(scans=len(found), shape=(d, h, w), spacing=(z, y, x), is_2d=bool(flat.all()))


def _grid_of(case: Case) -> Grid:
    scan = case.image.read()
    d, h, w = scan.voxels.shape[1:]
    return Grid(str(case.image), (d, h, w), scan.spacing)


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


def settle_plan(
    path: Path, cases: Sequence[Case], known: Mapping[str, Grid], overrides: PlanOverrides, encoder: Encoder
) -> Plan:
    """The plan in `path` where there is one (with the overrides on top), else a new one, written there.

    Args:
        path: the plan's file.
        cases: the training pool.
        known: the grids of cases that were read before, by key.
        overrides: what the user wants in place of the planner's choices.
        encoder: the patch is a multiple of its strides.

    Raises:
        UserError: the file is no plan, or the patch does not suit the encoder.
    """
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
        plan = make_plan(fingerprint(cases, known), overrides, encoder)
    write_json(path, plan.model_dump())
    return plan
