"""Weighted box clustering: one set of boxes out of the views of several models, mirrorings and windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scanfoundry.finetune.boxes.geometry import iou
from scanfoundry.finetune.cases.boxes import Boxes, Floats, Ints


@dataclass(frozen=True, eq=False)
class Views:
    """Boxes that several views of one scan found; a view is one pass of one model over one window.

    Attributes:
        boxes: N of them, with scores.
        view: (N,) which view found it.
        weight: (N,) how much its view is trusted at this place.
        expected: (N,) how many views look at this place.
    """

    boxes: Boxes
    view: Ints
    weight: Floats
    expected: Floats

    @classmethod
    def joined(cls, parts: Sequence["Views"]) -> "Views":
        """All of them."""
        view, weight, expected = zip(*((part.view, part.weight, part.expected) for part in parts), strict=True)
        boxes = Boxes.joined([part.boxes for part in parts])
        return cls(boxes, np.concatenate(view), np.concatenate(weight), np.concatenate(expected))

    def take(self, index: Ints) -> "Views":
        """The boxes of these numbers."""
        return Views(self.boxes.take(index), self.view[index], self.weight[index], self.expected[index])


def cluster(views: Views, threshold: float) -> Boxes:
    """Boxes of one class that overlap the best one left by an IoU above `threshold` (under 1) become one box.

    With w = IoU to the best one x weight, the box is sum(w s b) / sum(w s), the score sum(w s) / (sum w + n mean w),
    n being the views that look at the place (mean of `expected`) and found nothing: their votes count as zero
    (Jaeger et al. 2019, Retina U-Net, without its factor of area, which prefers the large boxes of a cluster).
    The result does not depend on the order of the input.
    """
    given = views.boxes
    columns = (*given.corners.T[::-1], views.weight, views.expected, views.view, given.labels, -given.surety)
    views = views.take(np.lexsort(columns))
    given, scores_of = views.boxes, views.boxes.surety
    corners, scores, labels = [], [], []
    rest = np.arange(len(given))
    while len(rest):
        best = rest[0]
        overlap = iou(given.corners[best : best + 1], given.corners[rest])[0]
        overlap[0] = 1.0  # a box without volume is itself all the same
        inside = (given.labels[rest] == given.labels[best]) & (overlap > threshold)
        members, rest = rest[inside], rest[~inside]
        w = overlap[inside] * views.weight[members]
        voices = w * scores_of[members]
        missing = max(0.0, views.expected[members].mean() - len(np.unique(views.view[members])))
        corners.append((voices[:, None] * given.corners[members]).sum(0) / voices.sum())
        scores.append(voices.sum() / (w.sum() + missing * w.mean()))
        labels.append(given.labels[best])
    width = given.corners.shape[1]
    found = Boxes(np.array(corners, float).reshape(-1, width), np.array(labels, np.int64), np.array(scores, float))
    return found.take(np.argsort(-found.surety, kind="stable"))
