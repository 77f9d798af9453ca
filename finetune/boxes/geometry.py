"""Lengths, overlaps and moves of corners (N, 6), see `cases.boxes`; where it says (N, 2A), of any number of axes."""

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.cases.boxes import Corners


def sides(boxes: Corners) -> npt.NDArray[np.float64]:
    """Lengths (N, A) of the boxes' edges."""
    axes = boxes.shape[1] // 2
    return boxes[:, axes:] - boxes[:, :axes]


def volumes(boxes: Corners) -> npt.NDArray[np.float64]:
    """Voxels (N,) that each box holds."""
    return sides(boxes).prod(1)


def centres(boxes: Corners) -> npt.NDArray[np.float64]:
    """Middles (N, A) of the boxes."""
    axes = boxes.shape[1] // 2
    return (boxes[:, axes:] + boxes[:, :axes]) / 2


def intersection(first: Corners, second: Corners) -> npt.NDArray[np.float64]:
    """Shared voxels of every pair: (N, 2A) and (M, 2A) -> (N, M)."""
    axes = first.shape[1] // 2
    low = np.maximum(first[:, None, :axes], second[None, :, :axes])
    high = np.minimum(first[:, None, axes:], second[None, :, axes:])
    return np.clip(high - low, 0, None).prod(-1)


def iou(first: Corners, second: Corners) -> npt.NDArray[np.float64]:
    """Intersection over union of every pair: (N, 2A) and (M, 2A) -> (N, M)."""
    shared = intersection(first, second)
    union = volumes(first)[:, None] + volumes(second)[None] - shared
    return shared / np.maximum(union, 1e-12)


def mirrored(boxes: Corners, axes: tuple[int, ...], shape: tuple[int, ...]) -> Corners:
    """The boxes in an image of `shape` that was flipped along `axes`."""
    out = boxes.copy()
    n = len(shape)
    for axis in axes:
        out[:, [axis, axis + n]] = shape[axis] - boxes[:, [axis + n, axis]]
    return out
