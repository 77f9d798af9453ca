"""Places labels onto the grid of their scan."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from scanfoundry.datasets.readers import read
from scanfoundry.datasets.readers.box_labels import boxes_of_mask, fit_boxes
from scanfoundry.datasets.readers.grey_levels import are_greys
from scanfoundry.datasets.readers.label_values import Mask, is_image, is_white, raw_of, whole_numbers
from scanfoundry.datasets.readers.labels import IGNORED, Greys, LabelRef, Labels
from scanfoundry.datasets.readers.scan import ReadError, Scan


def attach(scan: Scan, ref: LabelRef) -> Labels:
    """The labels of a scan on its own grid.

    Args:
        scan: its own labels (`scan.labels`) count where `ref` does not say otherwise.
        ref: labels from lists and mask files.

    Returns:
        Labels whose mask has the scan's shape (D, H, W) and whose boxes lie within it.

    Raises:
        ReadError: a mask or a box is not of this scan's grid; the text holds no path.
    """
    own = scan.labels
    mask, greys, names, boxes, left_out = own.mask, own.greys, own.names | ref.names, own.boxes, 0
    if ref.mask is not None:
        parts = [_stored(_one_on(scan, path)) for path in (ref.mask, *ref.more_masks)]
        mask, greys = _united([part for part, _ in parts]), _greys([kind for _, kind in parts])
    if ref.boxes is not None:
        boxes, left_out = _boxes(scan, ref)
    if ref.boxes_from_mask and mask is not None and ref.boxes is None:
        boxes = boxes_of_mask(_without_ignored(mask, names), names)
    targets, classes = own.targets | ref.targets, own.classes | ref.classes
    left_out += own.left_out
    known = replace(own, mask=mask, greys=greys, names=names, boxes=boxes, left_out=left_out)
    return replace(known, classes=classes, targets=targets)


def mask_on(scan: Scan, path: Path) -> Mask:
    """The mask in a file, on the grid of a scan.

    Args:
        scan: the scan that the mask is of.
        path: file of the mask. Of a file of several masks, that of the scan's part is taken.

    Returns:
        (D, H, W) in the smallest unsigned type; see `as_mask`.

    Raises:
        ReadError: the shape or the affine differs (by more than a tenth of a voxel at a corner), or the file does not
            hold whole numbers.
    """
    return as_mask(_one_on(scan, path))


def _one_on(scan: Scan, path: Path) -> Scan:
    try:
        found = read(path, mask=True)
    except ReadError as error:
        raise ReadError(f"mask: {error}") from error
    if len(found) > 1:
        found = [each for each in found if each.part == scan.part]
    if len(found) != 1:
        raise ReadError("mask: holds several masks and none for this part")
    check_grid(scan, found[0])
    return found[0]


def check_grid(scan: Scan, mask: Scan) -> None:
    """ReadError where `mask` does not lie on the grid of `scan`."""
    if mask.voxels.shape[1:] != scan.voxels.shape[1:]:
        raise ReadError(f"mask: shape {mask.voxels.shape[1:]} differs from the scan's {scan.voxels.shape[1:]}")
    if mask.affine is None or scan.affine is None:
        return
    corners = np.array([[x, y, z, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
    corners[:, :3] *= np.array(mask.voxels.shape[:0:-1]) - 1
    apart = np.linalg.norm((corners @ (mask.affine - scan.affine).T)[:, :3], axis=1).max()
    if apart > 0.1 * min(scan.spacing):
        raise ReadError(f"mask: its affine puts it {apart:.2f} mm away from the scan; resample it first")


def as_mask(scan: Scan) -> Mask:
    """The label numbers of a scan that is a mask.

    Returns:
        (D, H, W): the indices of a palette, 0 and 1 of an image in black and white, else the values themselves.

    Raises:
        ReadError: the values are no whole numbers from 0 on, or greys that cannot be the numbers of classes.
    """
    return _stored(scan)[0]


def _stored(scan: Scan) -> tuple[Mask, Greys]:
    numbers, cut, lossy, _ = raw_of(scan)
    white = is_image(scan) and is_white(numbers)
    if lossy and not white and numbers.any():
        raise ReadError("mask: JPEG has changed its values, and they are not clearly two; save masks as PNG")
    if is_image(scan) and not white and are_greys(numbers):
        raise ReadError(f"mask: greys from {numbers.min()} to {numbers.max()} that are no regions: no label map")
    return whole_numbers(numbers, white), "cut" if cut else "white" if white else ""


def _without_ignored(mask: Mask, names: dict[int, str]) -> Mask:
    ignored = [value for value, name in names.items() if name.lower() == IGNORED]
    return np.where(np.isin(mask, ignored), 0, mask).astype(mask.dtype) if ignored else mask


def _greys(kinds: list[Greys]) -> Greys:
    return "cut" if "cut" in kinds else "white" if "white" in kinds else ""


def _united(masks: list[Mask]) -> Mask:
    if len(masks) == 1:
        return masks[0]
    if max(int(mask.max()) for mask in masks) > 1:
        raise ReadError("mask: several files with more than one class each; unite them first")
    return np.bitwise_or.reduce(masks)


def _boxes(scan: Scan, ref: LabelRef) -> tuple[tuple, int]:
    shape = scan.voxels.shape[1:]
    if ref.boxes and ref.flat_boxes and shape[0] != 1:
        raise ReadError(f"boxes: without z0 and z1 for a scan of {shape[0]} slices")
    if ref.size is not None and ref.size != shape[1:]:
        raise ReadError(f"boxes: drawn on {ref.size[0]} x {ref.size[1]} pixels, the scan has {shape[1]} x {shape[2]}")
    try:
        return fit_boxes(ref.boxes or (), shape)
    except ReadError as error:
        raise ReadError(f"boxes: {error}") from error
