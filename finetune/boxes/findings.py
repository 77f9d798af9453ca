"""Labelled boxes of one scan."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scanforge.configs.errors import UserError
from scanforge.finetune.boxes.geometry import Boxes, sides


class Findings(NamedTuple):
    """What is to be found in a scan; there may be nothing."""

    boxes: Boxes  # (N, 6) d0 h0 w0 d1 h1 w1
    labels: npt.NDArray[np.int64]  # (N,) index into the classes

    def __len__(self) -> int:
        """How many."""
        return len(self.boxes)


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


def _text(box: npt.NDArray) -> str:
    return "(" + ", ".join(f"{x:g}" for x in box) + ")"
