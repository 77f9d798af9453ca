"""Average precision of boxes. Boxes are half-open (start, stop) per axis, in voxels: [d0,h0,w0,d1,h1,w1] or 2D."""

import numpy as np
import numpy.typing as npt


def iou(first: npt.NDArray, second: npt.NDArray) -> npt.NDArray:
    """Intersection over union of every pair: (N, 2A) and (M, 2A) boxes of A axes -> (N, M)."""
    axes = first.shape[1] // 2
    low = np.maximum(first[:, None, :axes], second[None, :, :axes])
    high = np.minimum(first[:, None, axes:], second[None, :, axes:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    union = _volume(first)[:, None] + _volume(second)[None] - overlap
    return overlap / np.maximum(union, 1e-12)


def match(boxes: npt.NDArray, scores: npt.NDArray, truth: npt.NDArray, threshold: float) -> list[bool]:
    """Which boxes of one scan hit: by falling score, each takes the free true box of highest IoU >= threshold.

    A true box is found once; a second box upon it is a false positive (COCO's rule). Order as the input's.
    """
    hits = [False] * len(boxes)
    if not len(boxes) or not len(truth):
        return hits
    overlap = iou(boxes, truth)
    for index in np.argsort(-scores, kind="stable"):
        best = int(overlap[index].argmax())
        if overlap[index, best] >= threshold:
            hits[index] = True
            overlap[:, best] = -1.0
    return hits


def average_precision(scores: npt.NDArray, hits: npt.NDArray, n_truth: int) -> float:
    """Area under precision over recall of the pooled boxes, precision made monotone (VOC 2010 on, all points).

    Boxes of equal score enter together, so that the value does not depend on the order of the scans.
    nan without true boxes; 0 without predicted ones.
    """
    if not n_truth:
        return float("nan")
    if not len(scores):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    found = np.cumsum(hits[order])[last]
    precision = found / (last + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(np.concatenate([[0.0], found / n_truth]))
    return float((steps * envelope).sum())


def _volume(boxes: npt.NDArray) -> npt.NDArray:
    axes = boxes.shape[1] // 2
    return (boxes[:, axes:] - boxes[:, :axes]).prod(1)
