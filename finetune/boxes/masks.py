"""Labelled boxes out of masks."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects, label

from scanforge.configs.errors import UserError
from scanforge.finetune.boxes.findings import Findings
from scanforge.finetune.boxes.geometry import Boxes


def of_mask(mask: npt.NDArray, n_classes: int, min_voxels: int, how: str) -> Findings:
    """Boxes of a mask (D, H, W), by falling place; parts under `min_voxels` are dropped.

    Each connected component (faces touching) of a value v is a finding of class v - 1; with one class, of all that
    is not 0. With how='instances', each value is one finding of the only class, in one piece or not. UserError where a
    value has no class, and for instances of several classes.
    """
    values = [int(v) for v in np.unique(mask) if v > 0]
    if how == "instances" and n_classes > 1:
        raise UserError("task.masks=instances needs one class of findings: the values of a mask name no class then")
    if how == "instances":
        boxes = _boxes(mask.astype(np.int64), min_voxels)
        return Findings(boxes, np.zeros(len(boxes), np.int64))
    if n_classes > 1 and values and values[-1] > n_classes:
        raise UserError(f"the mask holds the value {values[-1]}, but there are {n_classes} classes of findings")
    masks = [mask > 0] if n_classes == 1 else [mask == value for value in values]
    boxes_of = [_boxes(label(part)[0], min_voxels) for part in masks]
    labels = [0] if n_classes == 1 else [value - 1 for value in values]
    return Findings(
        np.concatenate([np.zeros((0, 6)), *boxes_of]), np.repeat(labels, [len(b) for b in boxes_of]).astype(np.int64)
    )


def _boxes(parts: npt.NDArray, min_voxels: int) -> Boxes:
    sizes = np.bincount(parts.ravel())[1:] if parts.any() else np.zeros(0)
    found = [
        [s.start for s in part] + [s.stop for s in part]
        for part, size in zip(find_objects(parts), sizes, strict=True)
        if part is not None and size >= min_voxels
    ]
    return np.array(found, float).reshape(-1, 6)
