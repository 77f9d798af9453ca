"""Boxes of one case on its scan: as drawn, or around the findings of its mask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers import ReadError, Scan
from scanfoundry.datasets.readers.box_labels import fit_box
from scanfoundry.datasets.readers.grey_levels import distinct
from scanfoundry.datasets.readers.label_values import is_image, is_white
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.cases.label_values import of_names
from scanfoundry.finetune.cases.volumes import read_numbers
from scanfoundry.finetune.checks.seen import Seen
from scanfoundry.finetune.config.tasks.labels import ReadsBoxes


def findings(
    case: Case,
    scan: Scan,
    task: ReadsBoxes,
    classes: Sequence[str],
    seen: Seen | None = None,
) -> Boxes:
    """The boxes of `case`, within the extent of its scan.

    What rounding carried over the edge is cut off; UserError where a box lies farther outside, was drawn at another
    size, or a mask has a value without a class. seen: takes down the values of masks.
    """
    if isinstance(case.target, Boxes):
        return _within(case, case.target, scan)
    assert case.target is not None
    assert not isinstance(case.target, int | float)
    raw = read_numbers(case.target, scan)
    if seen is not None:
        seen.add(case.target, raw, is_image(scan))
    mask = raw.numbers
    if mask.min() < 0:
        raise UserError(f"{case.target}: mask: holds {mask.min()}; findings are numbers from 1 on")
    if task.masks == "components" and is_image(scan) and is_white(mask):
        mask = mask // mask.max()
    if task.masks == "components" and len(classes) > 1:
        mask = _encoded(case, mask, classes)
    return boxes_of_mask(mask, task.masks, task.min_voxels, len(classes))


def _encoded(case: Case, mask: NDArray, classes: Sequence[str]) -> NDArray:
    names = (case.stated and case.stated.values) or dict(enumerate(classes, start=1))
    try:
        return of_names(names)[1].encode(mask)
    except ReadError as error:
        top = next(value for value in reversed([*distinct(mask)]) if value not in names)
        raise UserError(f"{case.target}: value {top}, but the classes of findings are {list(classes)}") from error


def boxes_of_mask(mask: NDArray, how: str, min_voxels: int, n_classes: int) -> Boxes:
    """Boxes around the findings in a mask (D, H, W), those below `min_voxels` left out.

    how: 'components' (faces touch) of each value, which is the class from 1 on (of all values where there is one
    class); 'instances': each value is one finding of the first class.
    """
    if how == "instances":
        values, numbered = np.unique(mask, return_inverse=True)
        ids = numbered.reshape(mask.shape) + (values[0] > 0)  # 0 stays the background
        return Boxes.of(_around(ids, min_voxels, 0))
    if n_classes == 1:
        return Boxes.of(_around(label(mask > 0)[0], min_voxels, 0))
    found = [_around(label(mask == value)[0], min_voxels, value - 1) for value in range(1, n_classes + 1)]
    return Boxes.of(pair for each in found for pair in each)


def _around(ids: NDArray[np.integer], min_voxels: int, class_index: int) -> list[tuple[list[float], int]]:
    """Corners and class of a box around each number."""
    sizes = np.bincount(ids.ravel())[1:]
    boxes = []
    for part, size in zip(find_objects(ids), sizes, strict=True):
        if part is not None and size >= min_voxels:
            corners = [float(s.start) for s in part] + [float(s.stop) for s in part]
            boxes.append((corners, class_index))
    return boxes


def _within(case: Case, drawn: Boxes, scan: Scan) -> Boxes:
    shape = scan.voxels.shape[1:]
    if len(drawn) and any(size not in (None, n) for size, n in zip(case.drawn_on, shape, strict=True)):
        on = " x ".join("?" if size is None else str(size) for size in case.drawn_on)
        raise UserError(f"{case.image}: its boxes were drawn on (D, H, W) = {on}, the scan is {shape}")
    kept = []
    for corners, class_index in drawn.listed():
        try:
            fitted = fit_box(corners[:3], corners[3:], shape)
        except ReadError as error:
            raise UserError(f"{case.image}: {error}") from error
        if fitted is None:
            raise UserError(f"{case.image}: a box lies outside the image of (D, H, W) = {shape}, or has no extent")
        kept.append(([*fitted[0], *fitted[1]], class_index))
    return Boxes.of(kept)
