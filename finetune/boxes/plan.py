"""What detection plans from the training boxes: whole scans or windows, levels of the pyramid, anchors."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.finetune.boxes.anchors import Anchors, plan_anchors, plan_strides
from scanfoundry.finetune.boxes.geometry import sides
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.config.detection import LEAST_SAMPLED, DetectionPlan

MIN_SIDE = 8.0  # voxels: a scan is not scaled to fit the patch where small findings would get smaller than this
MUCH_LARGER = 4.0  # nor where it is so many times the patch along an axis
SCALED = 0.8  # a milder scaling is not what makes a finding small
SAMPLED_PER_BOX = 24  # anchors for each box: a third of them are positive, which leaves room for 8 of every box


class Measured(NamedTuple):
    """One training case."""

    boxes: Boxes  # at the file's grid
    shape: tuple[int, int, int]  # of the file
    at_spacing: tuple[int, int, int]  # of the scan at the plan's spacing
    fitted: tuple[int, int, int]  # of the scan when scaled to fit the patch


def plan_detection(
    cases: Sequence[Measured], patch: Size3D, available: Sequence[Size3D], wanted: bool | None
) -> tuple[DetectionPlan, Anchors]:
    """The plan and the anchors (level, anchor, size) for these training cases; UserError where none has a box.

    available: strides of the maps that the encoder offers, finest first. wanted: the user's `whole_scan`.

    Without it, scans go in whole unless the findings are small for that: the small ones (5th percentile of the mean
    side) would fall below MIN_SIDE voxels by the scaling, or the scan (the median one) is over MUCH_LARGER times the
    patch along an axis. Windows also need findings (95th percentile of each side) that fit into one.
    """
    if not any(len(case.boxes) for case in cases):
        raise UserError("none of the training cases has a box: raise 'shots' or take another seed")
    flat = patch[0] == 1
    windows = np.concatenate([_sizes(case, case.at_spacing) for case in cases])[:, 1 if flat else 0 :]
    whole = np.concatenate([_sizes(case, case.fitted) for case in cases])[:, 1 if flat else 0 :]
    chosen, reason = (wanted, "task.whole_scan") if wanted is not None else _rule(cases, patch, windows, whole)
    sizes = whole if chosen else windows
    strides = plan_strides(sizes, available, patch)
    anchors, reached = plan_anchors(sizes, strides)
    plan = DetectionPlan(
        whole_scan=chosen,
        reason=reason,
        strides=strides,
        boxes=len(sizes),
        anchor_iou=round(reached, 4),
        sampled=max(LEAST_SAMPLED, round(SAMPLED_PER_BOX * _boxes_in_sight(cases, patch, chosen))),
    )
    return plan, anchors


def _rule(cases: Sequence[Measured], patch: Size3D, windows: npt.NDArray, whole: npt.NDArray) -> tuple[bool, str]:
    zoom = float(np.median([max(np.array(c.fitted) / np.array(c.at_spacing)) for c in cases]))
    times = float(np.median([max(np.array(c.at_spacing) / np.array(patch)) for c in cases]))
    small = float(np.percentile(np.exp(np.log(whole).mean(1)), 5))
    large = np.percentile(windows, 95, axis=0)
    if (large > np.array(patch[3 - windows.shape[1] :])).any():
        return True, "findings are larger than a patch at the plan's spacing"
    if zoom < SCALED and small < MIN_SIDE:
        return False, f"scaled to the patch, small findings would be {small:.1f} voxels"
    if times > MUCH_LARGER:
        return False, f"scans are {times:.1f} times the patch"
    return True, f"scans fit the patch at {zoom:.2f} times their size, small findings are then {small:.1f} voxels"


def _boxes_in_sight(cases: Sequence[Measured], patch: Size3D, whole: bool) -> float:
    """Of a patch, on average over the cases that have boxes. With a fixed number of samples, an image of many cells
    would show the loss one anchor of each, and of a rare class among them hardly any."""
    counts = []
    for case in cases:
        share = np.minimum(1.0, np.array(patch) / np.array(case.at_spacing)).prod()
        counts.append(len(case.boxes) * (1.0 if whole else float(share)))
    return float(np.mean([count for count in counts if count]))


def _sizes(case: Measured, shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    return sides(case.boxes.corners) * np.array(shape) / np.array(case.shape)
