"""Scores of predicted values, for weighted cases.

Every function takes truth (N,), prediction (N,) and weights (R, N), how often each case counts in each of R
resamples, and gives (R,); nan where undefined (no case; no spread, where a spread is divided by).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.metrics.weighted import Prepared, Ranking, Record, Values, Weighted, Weights, ratio

Numbers = npt.NDArray[np.float64]
Score = Callable[[Numbers, Numbers, Weights], Values]
NO_SPREAD = 1e-12  # variances below this share of the mean square are rounding


def of_records(score: Score) -> Weighted:
    """A score of records that hold `truth` and `prediction`."""

    def prepare(records: list[Record]) -> Prepared:
        truth = np.array([record["truth"] for record in records], float)
        prediction = np.array([record["prediction"] for record in records], float)
        return lambda weights: score(truth, prediction, weights)

    return Weighted(prepare)


def mae(truth: Numbers, prediction: Numbers, weights: Weights) -> Values:
    """Mean absolute error, in the target's unit."""
    return ratio(weights @ np.abs(prediction - truth), weights.sum(1))


def rmse(truth: Numbers, prediction: Numbers, weights: Weights) -> Values:
    """Root of the mean squared error, in the target's unit."""
    return np.sqrt(ratio(weights @ (prediction - truth) ** 2, weights.sum(1)))


def r2(truth: Numbers, prediction: Numbers, weights: Weights) -> Values:
    """1 - squared error / squared deviation of the truth from its own mean; nan where the truth has no spread."""
    shifted = truth - truth.mean() if len(truth) else truth
    spread = _variance(shifted, weights) * weights.sum(1)
    return 1 - ratio(weights @ (prediction - truth) ** 2, spread)


def pearson(truth: Numbers, prediction: Numbers, weights: Weights) -> Values:
    """Pearson's correlation; nan where either has no spread."""
    return _correlation(truth, prediction, weights)


def spearman(truth: Numbers, prediction: Numbers, weights: Weights) -> Values:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return _correlation(_ranks(truth, weights), _ranks(prediction, weights), weights)


def _ranks(values: Numbers, weights: Weights) -> Numbers:
    """(N,) -> (R, N) mean ranks among the cases as often as they were drawn."""
    ranking = Ranking.of(values)
    sizes = ranking.sums(weights)
    return -(sizes.cumsum(1) - (sizes - 1) / 2)[:, ranking.group]  # falling order: the sign makes them rise


def _correlation(first: Numbers, second: Numbers, weights: Weights) -> Values:
    total = weights.sum(1, keepdims=True)
    centred = [x - ratio((weights * x).sum(1, keepdims=True), total) for x in (first, second)]
    covariance = ratio((weights * centred[0] * centred[1]).sum(1), total[:, 0])
    spread = np.sqrt(_variance(first, weights) * _variance(second, weights))
    return ratio(covariance, spread)


def _variance(values: Numbers, weights: Weights) -> Values:
    """(R,) variances of (N,) or (R, N) values; exactly 0 where all that is left is rounding."""
    total = weights.sum(1, keepdims=True)
    mean = ratio((weights * values).sum(1, keepdims=True), total)
    found = ratio((weights * (values - mean) ** 2).sum(1), total[:, 0])
    scale = ratio((weights * values**2).sum(1), total[:, 0])
    return np.where(found <= NO_SPREAD**2 * scale, 0.0, found)
