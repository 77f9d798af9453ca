"""Scores of class probabilities, for weighted cases.

Every function takes labels (N,) integers, probabilities (N, K) and weights (R, N), how often each case counts in each
of R resamples, and gives (R,); nan where undefined. With weights of 1 the values are scikit-learn's. Of two classes
the second is the positive one.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.metrics.reliability import BINS, bin_of
from scanfoundry.finetune.metrics.weighted import Prepared, Ranking, Record, Values, Weighted, Weights, ratio

ClassIndices = npt.NDArray[np.int_]
Probabilities = npt.NDArray[np.float64]
Score = Callable[[ClassIndices, Probabilities, Weights], Values]


def of_records(score: Score) -> Weighted:
    """A score of records that hold `label` and `probabilities`."""

    def prepare(records: list[Record]) -> Prepared:
        labels = np.array([record["label"] for record in records], int)
        probabilities = np.array([record["probabilities"] for record in records], float)
        return lambda weights: score(labels, probabilities, weights)

    return Weighted(prepare)


def auroc(labels: ClassIndices, probabilities: Probabilities, weights: Weights) -> Values:
    """Area under the ROC curve: of the second class of two, or the mean over the classes that occur, each against
    the rest. Ties count half. nan where a single class occurs."""
    return _one_vs_rest(auroc_of, labels, probabilities, weights)


def average_precision(labels: ClassIndices, probabilities: Probabilities, weights: Weights) -> Values:
    """Average precision (step-wise, not interpolated): of the second class of two, or the mean over the classes that
    occur. nan where a single class occurs."""
    return _one_vs_rest(average_precision_of, labels, probabilities, weights)


def auroc_of_class(labels: ClassIndices, probabilities: Probabilities, weights: Weights, label: int) -> Values:
    """Area under the ROC curve of one class against the rest; nan where only it, or only the rest, occurs."""
    return auroc_of(labels == label, probabilities[:, label], weights)


def auroc_of(truth: npt.NDArray, scores: npt.NDArray, weights: Weights) -> Values:
    """P(positive scored above negative) + P(equal) / 2, truth and scores (N,)."""
    ranking = Ranking.of(scores)
    positive, negative = ranking.sums(weights * truth), ranking.sums(weights * ~truth)
    below = negative.sum(1, keepdims=True) - negative.cumsum(1)
    wins = (positive * (below + negative / 2)).sum(1)
    return ratio(wins, positive.sum(1) * negative.sum(1))


def average_precision_of(truth: npt.NDArray, scores: npt.NDArray, weights: Weights) -> Values:
    """Mean over the positives of the precision at their score, truth and scores (N,)."""
    ranking = Ranking.of(scores)
    positive = ranking.sums(weights * truth)
    precision = np.nan_to_num(ratio(positive.cumsum(1), ranking.sums(weights).cumsum(1)))
    return ratio((positive * precision).sum(1), positive.sum(1))


def accuracy(labels: ClassIndices, probabilities: Probabilities, weights: Weights) -> Values:
    """Share of cases whose most probable class is the true one."""
    return ratio(weights @ (probabilities.argmax(1) == labels), weights.sum(1))


def balanced_accuracy(labels: ClassIndices, probabilities: Probabilities, weights: Weights) -> Values:
    """Mean recall over the classes that occur."""
    return _mean_defined([recall(labels, probabilities, weights, k) for k in range(probabilities.shape[1])])


def recall(labels: ClassIndices, probabilities: Probabilities, weights: Weights, label: int) -> Values:
    """Share of the cases of a class for which it is the most probable: sensitivity of the second of two classes,
    specificity of the first."""
    of_class = labels == label
    return ratio(weights @ (of_class & (probabilities.argmax(1) == label)), weights @ of_class)


def brier(labels: ClassIndices, probabilities: Probabilities, weights: Weights) -> Values:
    """Mean squared error of the probabilities (Brier 1950), summed over several classes (0 to 2), of the second of
    two classes alone (0 to 1): the two conventions of scikit-learn."""
    error = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    return ratio(weights @ (error[:, 1] if error.shape[1] == 2 else error.sum(1)), weights.sum(1))


def expected_calibration_error(labels: ClassIndices, probabilities: Probabilities, weights: Weights) -> Values:
    """ECE (Guo et al. 2017, eq. 3): confidence of the top class in 10 equal bins ((a, b], 0 in the first), mean
    |accuracy - confidence| weighted by the bins' counts."""
    confidence = probabilities.max(1)
    hit = probabilities.argmax(1) == labels
    signed = (hit - confidence)[:, None] * np.eye(BINS)[bin_of(confidence)]
    return ratio(np.abs(weights @ signed).sum(1), weights.sum(1))


def _one_vs_rest(score: Score, labels: ClassIndices, probabilities: Probabilities, weights: Weights) -> Values:
    if probabilities.shape[1] == 2:
        value = score(labels == 1, probabilities[:, 1], weights)
        return np.where((weights @ (labels == 0) > 0) & (weights @ (labels == 1) > 0), value, np.nan)
    present = np.stack([weights @ (labels == k) > 0 for k in range(probabilities.shape[1])])
    values = [score(labels == k, column, weights) for k, column in enumerate(probabilities.T)]
    mean = _mean_defined([np.where(there, value, np.nan) for there, value in zip(present, values, strict=True)])
    return np.where(present.sum(0) > 1, mean, np.nan)


def _mean_defined(values: list[Values]) -> Values:
    stacked = np.stack(values)
    return ratio(np.nansum(stacked, 0), (~np.isnan(stacked)).sum(0))
