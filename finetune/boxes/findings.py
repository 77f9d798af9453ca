"""Labelled boxes of one scan, out of masks and lists."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects, label

from scanforge.configs.errors import UserError
from scanforge.finetune.boxes.geometry import Boxes, sides


class Findings(NamedTuple):
    """What is to be found in a scan; there may be nothing."""

    boxes: Boxes  # (N, 6) d0 h0 w0 d1 h1 w1
    labels: npt.NDArray[np.int64]  # (N,) index into the classes

    def __len__(self) -> int:
        """How many."""
        return len(self.boxes)


def of_mask(mask: npt.NDArray, n_classes: int, min_voxels: int, instances: bool) -> Findings:
    """Boxes of a mask (D, H, W), by falling place; parts under `min_voxels` are dropped.

    Each connected component (faces touching) of a value v is a finding of class v - 1; with one class, of all that
    is not 0. With `instances`, each value is one finding of the only class, in one piece or not. UserError where a
    value has no class, and for instances of several classes.
    """
    values = [int(v) for v in np.unique(mask) if v > 0]
    if instances and n_classes > 1:
        raise UserError("task.instances needs one class of findings: the values of a mask name no class then")
    if instances:
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


def of_list(found: Sequence[Any], n_classes: int, shape: tuple[int, ...]) -> Findings:
    """Boxes as a list has them: (box, label), or a box alone, of the first class.

    UserError for a box that is empty, reaches outside the scan's `shape` (D, H, W), or has a label without a class.
    """
    pairs = [entry if len(entry) == 2 else (entry, 0) for entry in found]
    boxes = np.array([box for box, _ in pairs], float).reshape(-1, 6)
    labels = np.array([number for _, number in pairs], np.int64)
    for box, lengths, number in zip(boxes, sides(boxes), labels, strict=True):
        if not (np.isfinite(box).all() and (lengths > 0).all()):
            raise UserError(f"the box {_text(box)} is empty or no box (d0 h0 w0 d1 h1 w1): mend or remove it")
        if (box < 0).any() or (box[3:] > np.array(shape)).any():
            raise UserError(f"the box {_text(box)} reaches outside the image of (D, H, W) = {tuple(shape)}")
        if not 0 <= number < n_classes:
            raise UserError(f"the box {_text(box)} has label {number}, but there are {n_classes} classes of findings")
    return Findings(boxes, labels)


def _boxes(parts: npt.NDArray, min_voxels: int) -> Boxes:
    sizes = np.bincount(parts.ravel())[1:] if parts.any() else np.zeros(0)
    found = [
        [s.start for s in part] + [s.stop for s in part]
        for part, size in zip(find_objects(parts), sizes, strict=True)
        if part is not None and size >= min_voxels
    ]
    return np.array(found, float).reshape(-1, 6)


def _text(box: npt.NDArray) -> str:
    return "(" + ", ".join(f"{x:g}" for x in box) + ")"
