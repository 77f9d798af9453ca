"""Calibration of many predictions per case, such as voxels: counts by confidence, added up over cases.

A record holds `reliability`, what `counted` gives, or None where a case has no probabilities.
"""

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.metrics.weighted import Prepared, Record, Values, Weighted, Weights, ratio

BINS = 10


def bin_of(confidence: npt.NDArray) -> npt.NDArray[np.int_]:
    """Ten equal bins (a, b] of 0..1; 0 itself is in the first."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def counted(probabilities: npt.NDArray, labels: npt.NDArray) -> list[list[float]]:
    """For each bin of the top class's confidence: how many, the sum of their confidence, how many are right.

    probabilities (N, K), labels (N,) integers. Voxels far from any structure are all sure and right, and make every
    segmentation look calibrated: give those of the part `around` what is labelled.
    """
    found = np.asarray(probabilities)
    confidence, hit = found.max(1).astype(np.float64), found.argmax(1) == np.asarray(labels)
    index = bin_of(confidence)
    parts = [np.bincount(index, weights, BINS) for weights in (None, confidence, hit)]
    return np.stack(parts, axis=1).tolist()


def around(truth: npt.NDArray, margin: int = 5) -> tuple[slice, ...]:
    """The box of all that a label map (D, H, W) labels, `margin` voxels wider; the whole where nothing is."""
    labelled = np.argwhere(truth > 0)
    if not len(labelled):
        return tuple(slice(0, size) for size in truth.shape)
    low, high = np.maximum(labelled.min(0) - margin, 0), np.minimum(labelled.max(0) + 1 + margin, truth.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def pooled(records: list[Record]) -> npt.NDArray[np.float64]:
    """The bins (BINS, 3) of all cases together."""
    return sum((np.array(record["reliability"]) for record in records if record["reliability"]), np.zeros((BINS, 3)))


def _ece(records: list[Record]) -> Prepared:
    nothing = np.zeros((BINS, 3))
    found = [record["reliability"] for record in records]
    table = np.array([nothing if bins is None else bins for bins in found], float).reshape(len(records), BINS, 3)

    def value(weights: Weights) -> Values:
        number, confidence, right = np.moveaxis(np.tensordot(weights, table, axes=1), -1, 0)
        return ratio(np.abs(right - confidence).sum(1), number.sum(1))

    return value


ece = Weighted(_ece)  # expected calibration error (Guo et al. 2017, eq. 3) of all predictions of all cases
