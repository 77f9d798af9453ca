"""Weighted box clustering: one set of boxes out of the views of several models, mirrorings and windows."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.boxes.geometry import Boxes, iou

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Views(NamedTuple):
    """Boxes that several views of one scan found; a view is one pass of one model over one window."""

    boxes: Boxes  # (N, 2A)
    scores: Floats  # (N,)
    labels: Ints  # (N,)
    view: Ints  # (N,) which view found it
    weight: Floats  # (N,) how much its view is trusted at this place
    expected: Floats  # (N,) how many views look at this place

    def take(self, index: Ints) -> "Views":
        """The boxes of these numbers."""
        columns: list[Any] = [part[index] for part in self]
        return Views(*columns)


class Detections(NamedTuple):
    """Boxes of one scan, best first."""

    boxes: Boxes  # (N, 2A)
    scores: Floats  # (N,)
    labels: Ints  # (N,)


def cluster(views: Views, threshold: float) -> Detections:
    """Boxes of one class that overlap the best one left by an IoU above `threshold` (under 1) become one box.

    With w = IoU to the best one x weight, the box is sum(w s b) / sum(w s), the score sum(w s) / (sum w + n mean w),
    n being the views that look at the place (mean of `expected`) and found nothing: their votes count as zero
    (Jaeger et al. 2019, Retina U-Net, without its factor of area, which prefers the large boxes of a cluster).
    The result does not depend on the order of the input.
    """
    columns = (*views.boxes.T[::-1], views.weight, views.expected, views.view, views.labels, -views.scores)
    views = views.take(np.lexsort(columns))
    boxes, scores, labels = [], [], []
    rest = np.arange(len(views.scores))
    while len(rest):
        best = rest[0]
        overlap = iou(views.boxes[best : best + 1], views.boxes[rest])[0]
        overlap[0] = 1.0  # a box without volume is itself all the same
        inside = (views.labels[rest] == views.labels[best]) & (overlap > threshold)
        members, rest = rest[inside], rest[~inside]
        w = overlap[inside] * views.weight[members]
        voices = w * views.scores[members]
        missing = max(0.0, views.expected[members].mean() - len(np.unique(views.view[members])))
        boxes.append((voices[:, None] * views.boxes[members]).sum(0) / voices.sum())
        scores.append(voices.sum() / (w.sum() + missing * w.mean()))
        labels.append(views.labels[best])
    order = np.argsort(-np.array(scores), kind="stable")
    width = views.boxes.shape[1]
    return Detections(
        np.array(boxes, float).reshape(-1, width)[order],
        np.array(scores, float)[order],
        np.array(labels, np.int64)[order],
    )
