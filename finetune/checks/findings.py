"""Boxes of one case on its scan: as drawn, or around the findings of its mask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels import Box as DrawnBox
from scanfoundry.datasets.readers import ReadError, Scan
from scanfoundry.datasets.readers.box_labels import fit_boxes
from scanfoundry.datasets.readers.grey_levels import distinct
from scanfoundry.datasets.readers.label_values import is_image, is_white
from scanfoundry.finetune.cases.cases import Case, LabelledBox
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
) -> tuple[LabelledBox, ...]:
    """The boxes of `case`, within the extent of its scan.

    What rounding carried over the edge is cut off; UserError where a box lies farther outside, was drawn at another
    size, or a mask has a value without a class. seen: takes down the values of masks.
    """
    if isinstance(case.target, tuple):
        return _within(case, scan)
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


def boxes_of_mask(mask: NDArray, how: str, min_voxels: int, n_classes: int) -> tuple[LabelledBox, ...]:
    """Boxes around the findings in a mask (D, H, W), those below `min_voxels` left out.

    how: 'components' (faces touch) of each value, which is the class from 1 on (of all values where there is one
    class); 'instances': each value is one finding of the first class.
    """
    if how == "instances":
        values, numbered = np.unique(mask, return_inverse=True)
        ids = numbered.reshape(mask.shape) + (values[0] > 0)  # 0 stays the background
        return _boxes(ids, min_voxels, 0)
    if n_classes == 1:
        return _boxes(label(mask > 0)[0], min_voxels, 0)
    found = [_boxes(label(mask == value)[0], min_voxels, value - 1) for value in range(1, n_classes + 1)]
    return tuple(box for each in found for box in each)


def _boxes(ids: NDArray[np.integer], min_voxels: int, class_index: int) -> tuple[LabelledBox, ...]:
    sizes = np.bincount(ids.ravel())[1:]
    boxes = []
    for part, size in zip(find_objects(ids), sizes, strict=True):
        if part is not None and size >= min_voxels:
            (d0, d1), (h0, h1), (w0, w1) = ((float(s.start), float(s.stop)) for s in part)
            boxes.append(LabelledBox((d0, h0, w0, d1, h1, w1), class_index))
    return tuple(boxes)


def _within(case: Case, scan: Scan) -> tuple[LabelledBox, ...]:
    assert isinstance(case.target, tuple)
    shape = scan.voxels.shape[1:]
    if case.target and any(size not in (None, n) for size, n in zip(case.drawn_on, shape, strict=True)):
        drawn = " x ".join("?" if size is None else str(size) for size in case.drawn_on)
        raise UserError(f"{case.image}: its boxes were drawn on (D, H, W) = {drawn}, the scan is {shape}")
    kept = []
    for box, class_index in case.target:
        try:
            fitted, _ = fit_boxes((DrawnBox(box[:3], box[3:]),), shape)
        except ReadError as error:
            raise UserError(f"{case.image}: {error}") from error
        if not fitted:
            raise UserError(f"{case.image}: a box lies outside the image of (D, H, W) = {shape}, or has no extent")
        kept.append(LabelledBox((*fitted[0].low, *fitted[0].high), class_index))
    return tuple(kept)
