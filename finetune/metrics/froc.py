"""Numbers of the boxes of all test cases together: AP, mean AP, FROC; for weighted cases.

A record of a case holds `scores`, `labels` and `hits` of its predicted boxes (`hits`: a whole number whose bit i says
whether the box hits at IOUS[i], see `hit_bits`) and `truths`, the number of true boxes of each class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.metrics.detection import area, match
from scanfoundry.finetune.metrics.weighted import Prepared, Record, Values, Weighted, Weights, blockwise, ratio

IOUS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)  # nnDetection's range of COCO's mean AP
FALSE_POSITIVES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}  # per image


@dataclass(frozen=True)
class Curve:
    """Counts of one class over the G falling thresholds that find something: what was found (R, G), what was kept
    (R, G); the true boxes and the images (R,). Between them only false positives enter, which no number here sees."""

    found: Weights
    kept: Weights
    n_truth: Values
    n_images: Values


def hit_bits(found: Boxes, truth: Boxes) -> list[int]:
    """For each box a whole number, bit i set where it hits at IOUS[i] (see `match`)."""
    hits = [match(found, truth, threshold) for threshold in IOUS]
    return [sum(int(hit) << i for i, hit in enumerate(of_box)) for of_box in zip(*hits, strict=True)]


def hits_at(record: Record, iou: float) -> npt.NDArray[np.bool_]:
    """Which boxes of a record hit at one of IOUS."""
    return (np.array(record["hits"], int) >> IOUS.index(iou) & 1).astype(bool)


def average_precision_at(ious: Sequence[float], classes: Sequence[int]) -> Weighted:
    """AP, the mean over IoUs and over the classes that have a true box; nan where none has."""
    return _of_curves(ious, classes, lambda curve: area(curve.found, curve.kept, curve.n_truth))


def sensitivity_at(iou: float, classes: Sequence[int], false_positives: Sequence[float]) -> Weighted:
    """FROC: the share of true boxes found at the lowest threshold that keeps at most so many false positives per image
    (images without truth count as images), mean over `false_positives` and classes.

    A step, not interpolated: a threshold with this sensitivity exists. Boxes of equal score enter together.
    """
    return _of_curves([iou], classes, partial(_sensitivity, false_positives=false_positives))


def froc_curve(records: list[Record], iou: float, label: int) -> tuple[npt.NDArray, npt.NDArray]:
    """(false positives per image, sensitivity) at the thresholds that find something, from (0, 0) on; of one class, to
    draw as steps."""
    curve = _Counts(records, iou, label)(np.ones((1, len(records))))
    wrong = (curve.kept - curve.found)[0] / max(1, len(records))
    found = curve.found[0] / max(1.0, float(curve.n_truth[0]))
    return np.append(0.0, wrong), np.append(0.0, found)


def _sensitivity(curve: Curve, false_positives: Sequence[float]) -> Values:
    wrong = curve.kept - curve.found
    found = np.concatenate([np.zeros((len(wrong), 1)), curve.found], axis=1)
    values = []
    for allowed in false_positives:
        last = (wrong <= allowed * curve.n_images[:, None] + 1e-9).sum(1)
        values.append(ratio(found[np.arange(len(found)), last], curve.n_truth))
    return np.mean(values, axis=0)


def _of_curves(ious: Sequence[float], classes: Sequence[int], value: Callable[[Curve], Values]) -> Weighted:
    """Mean over IoUs, and over the classes whose value is defined."""

    def prepare(records: list[Record]) -> Prepared:
        by_class = [[_Counts(records, iou, label) for iou in ious] for label in classes]
        widest = max(counts.found.shape[1] for each in by_class for counts in each)

        def values(weights: Weights) -> Values:
            each = np.stack([np.mean([value(counts(weights)) for counts in group], axis=0) for group in by_class])
            return ratio(np.nansum(each, 0), (~np.isnan(each)).sum(0))

        return lambda weights: blockwise(values, weights, widest)

    return Weighted(prepare)


class _Counts:
    """Of each case and threshold, what is found and kept: (N, G) whole numbers, so that weighing is a product."""

    def __init__(self, records: list[Record], iou: float, label: int) -> None:
        case = np.repeat(np.arange(len(records)), [len(record["scores"]) for record in records])
        scores = _joined(records, lambda record: record["scores"], float)
        own = _joined(records, lambda record: record["labels"], int) == label
        hits = _joined(records, partial(hits_at, iou=iou), bool)[own]
        thresholds = -np.unique(scores[own][hits])[::-1]  # signs turned, so that they rise from the surest on
        self.truths = np.array([record["truths"][label] for record in records], float)
        column = np.searchsorted(thresholds, -scores[own])  # the first threshold that keeps the box
        self.kept = _table(case[own], column, len(records), len(thresholds))
        self.found = _table(case[own][hits], column[hits], len(records), len(thresholds))

    def __call__(self, weights: Weights) -> Curve:
        """The counts of all cases together, (R, G)."""
        return Curve(weights @ self.found, weights @ self.kept, weights @ self.truths, weights.sum(1))


def _table(case: npt.NDArray, column: npt.NDArray, n_cases: int, n_columns: int) -> npt.NDArray[np.float64]:
    counts = np.zeros((n_cases, n_columns + 1))
    np.add.at(counts, (case, column), 1)
    return counts.cumsum(1)[:, :n_columns]


def _joined(records: list[Record], part: Callable[[Record], npt.ArrayLike], kind: type) -> npt.NDArray:
    return np.concatenate([np.zeros(0, kind), *(np.array(part(record), kind) for record in records)])
