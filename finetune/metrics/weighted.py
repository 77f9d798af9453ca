"""Statistics of a set of cases in which each case has a weight: a bootstrap resample is nothing but whole weights.

What is dear (sorting, matching, parsing records) is done once by `prepare`; a thousand resamples are then a few
array operations. Weights are (R, N): R resamples of N cases; values are (R,), nan where undefined.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Record = dict[str, Any]
Weights = npt.NDArray[np.float64]
Values = npt.NDArray[np.float64]
Prepared = Callable[[Weights], Values]
BLOCK = 2_000_000  # numbers of one array over resamples, at most


@dataclass(frozen=True)
class Weighted:
    """A statistic of records that is computed for many weightings at once; called with records, its plain value."""

    prepare: Callable[[list[Record]], Prepared]

    def __call__(self, records: list[Record]) -> float:
        """The value with every case once; nan where undefined."""
        return float(self.prepare(records)(np.ones((1, len(records))))[0])


def mean_of(value: Callable[[Record], float | None]) -> Weighted:
    """The mean of one number of each case; None and nan are undefined and left out."""

    def prepare(records: list[Record]) -> Prepared:
        found = [value(record) for record in records]
        values = np.array([np.nan if v is None else v for v in found], float)
        return lambda weights: weighted_mean(values, weights)

    return Weighted(prepare)


def weighted_mean(values: npt.NDArray, weights: Weights) -> Values:
    """Mean over cases of (N,) or (R, N) values; nan values are left out, and where nothing is left it is nan."""
    defined = ~np.isnan(values)
    total = (weights * np.where(defined, values, 0.0)).sum(-1)
    return ratio(total, (weights * defined).sum(-1))


def blockwise(values: Prepared, weights: Weights, width: int) -> Values:
    """`values(weights)` in blocks of resamples, for arrays of (R, width) that would not fit into memory."""
    step = max(1, BLOCK // max(1, width))
    return np.concatenate([values(weights[i : i + step]) for i in range(0, len(weights), step)])


def ratio(above: npt.NDArray, below: npt.NDArray) -> Values:
    """`above / below`, nan where `below` is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


@dataclass(frozen=True)
class Ranking:
    """Cases in falling order of a score, those of equal score together: (M,) scores -> G groups."""

    order: npt.NDArray[np.intp]  # (M,) cases, highest score first
    starts: npt.NDArray[np.intp]  # (G,) where each group begins in `order`
    group: npt.NDArray[np.intp]  # (M,) the group of each case

    @classmethod
    def of(cls, scores: npt.NDArray) -> "Ranking":
        """Rank by (M,) scores."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(scores) else np.zeros(0, int)
        group = np.empty(len(scores), np.intp)
        group[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(scores))))
        return cls(order, starts, group)

    def sums(self, weights: Weights) -> Weights:
        """(R, M) -> (R, G): the weight in each group."""
        if not len(self.starts):
            return np.zeros((len(weights), 0))
        return np.add.reduceat(weights[:, self.order], self.starts, axis=1)
