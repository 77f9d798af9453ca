"""Bootstrap intervals over patients (and seeds), paired where two arms saw the same test cases."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

Record = dict[str, Any]
Statistic = Callable[[list[Record]], float]


class Interval(BaseModel):
    """A number with its 95% percentile interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    patients: int
    seeds: int
    resamples: int
    undefined: int = 0  # resamples in which the statistic had no value, left out


def interval(seeds: Sequence[list[Record]], statistic: Statistic, resamples: int) -> Interval:
    """`statistic` averaged over `seeds` (the records of each seed's test cases), with its interval.

    A resample draws patients with replacement, all cases of a patient together, and seeds with replacement
    where there are several. Two patients are needed for an interval.
    """
    return difference(seeds, None, statistic, resamples)


def difference(
    first: Sequence[list[Record]],
    second: Sequence[list[Record]] | None,
    statistic: Statistic,
    resamples: int,
) -> Interval:
    """`first` - `second` (or `first` alone), both arms on the same draw of patients and seeds: paired."""
    arms = [first] if second is None else [first, second]
    patients = sorted({record["patient"] for records in first for record in records})
    groups = [[_by_patient(records, patients) for records in arm] for arm in arms]
    everyone = np.arange(len(patients))
    value = _value(groups, everyone, np.arange(len(first)), statistic)
    draws = np.array([]) if len(patients) < 2 else _draws(groups, len(patients), statistic, resamples)
    defined = draws[~np.isnan(draws)]
    enough = len(defined) >= max(2, resamples // 2)
    low, high = np.percentile(defined, [2.5, 97.5]) if enough else (np.nan, np.nan)
    return Interval(
        value=_or_none(value),
        low=_or_none(low),
        high=_or_none(high),
        patients=len(patients),
        seeds=len(first),
        resamples=len(draws),
        undefined=len(draws) - len(defined),
    )


Groups = list[list[list[list[Record]]]]  # arm, seed, patient, case


def _draws(groups: Groups, n_patients: int, statistic: Statistic, resamples: int) -> npt.NDArray:
    rng = np.random.default_rng(20260101)
    n_seeds = len(groups[0])
    return np.array(
        [
            _value(groups, rng.integers(n_patients, size=n_patients), rng.integers(n_seeds, size=n_seeds), statistic)
            for _ in range(resamples)
        ]
    )


def _value(groups: Groups, patients: npt.NDArray, seeds: npt.NDArray, statistic: Statistic) -> float:
    means = []
    for arm in groups:
        cache: dict[int, float] = {}
        for seed in seeds:
            if int(seed) not in cache:
                cache[int(seed)] = statistic([record for p in patients for record in arm[seed][p]])
        means.append(float(np.mean([cache[int(seed)] for seed in seeds])))
    return means[0] if len(means) == 1 else means[0] - means[1]


def _by_patient(records: list[Record], patients: list[str]) -> list[list[Record]]:
    grouped: dict[str, list[Record]] = {patient: [] for patient in patients}
    for record in records:
        grouped[record["patient"]].append(record)
    return [grouped[patient] for patient in patients]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
