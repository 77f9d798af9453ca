"""Which boxes hit, and average precision."""

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.boxes.geometry import iou
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.metrics.weighted import Ranking, Values, Weights, ratio


def match(found: Boxes, truth: Boxes, threshold: float) -> list[bool]:
    """Which predicted boxes of one scan hit: by falling score, each takes the free true box of its class of highest
    IoU >= threshold.

    A true box is found once; a second box upon it is a false positive (COCO's rule). Among boxes of equal score the
    one of highest IoU comes first, then the order of coordinates: how the boxes were listed does not matter. The
    result is in the input's order.
    """
    hits = [False] * len(found)
    if not len(found) or not len(truth):
        return hits
    truth = truth.take(np.lexsort(truth.corners.T))
    overlap = iou(found.corners, truth.corners)
    overlap[found.labels[:, None] != truth.labels[None]] = -1.0
    for index in np.lexsort((*found.corners.T, -overlap.max(1), -found.surety)):
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
    ranking = Ranking.of(np.asarray(scores, float))
    ones = np.ones((1, len(scores)))
    found = ranking.sums(ones * np.asarray(hits, bool)).cumsum(1)
    return float(area(found, ranking.sums(ones).cumsum(1), np.array([float(n_truth)]))[0])


def area(found: Weights, kept: Weights, n_truth: Values) -> Values:
    """Average precision of R resamples: boxes that hit (R, G) among those kept (R, G) at each of G falling
    thresholds, and the true boxes (R,)."""
    precision = np.nan_to_num(ratio(found, kept))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    gained = np.diff(found, axis=1, prepend=0.0)
    return ratio((gained * envelope).sum(1), n_truth)
