import numpy as np
import pytest

from scanfoundry.finetune.metrics.classification import auroc, of_records
from scanfoundry.finetune.metrics.intervals import difference, interval
from scanfoundry.finetune.metrics.weighted import mean_of


def records(values, per_patient=1):
    return [{"patient": f"p{i // per_patient}", "score": float(v)} for i, v in enumerate(values)]


def mean(chosen):
    return float(np.mean([r["score"] for r in chosen])) if chosen else float("nan")


def test_near_the_normal_interval_of_a_mean():
    values = np.random.default_rng(0).normal(0.8, 0.1, 200)
    found = interval([records(values)], mean, 2000)
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.002)
    assert found.high == pytest.approx(values.mean() + half, abs=0.002)


def test_cases_of_one_patient_stay_together():
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 20), 10)
    alone, together = interval([records(values)], mean, 500), interval([records(values, 10)], mean, 500)
    assert together.patients == 20
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(3)
    base = rng.normal(0.7, 0.01, 50)
    same, apart = [records(base)] * 3, [records(base + shift) for shift in (-0.1, 0, 0.1)]
    wide, narrow = interval(apart, mean, 400), interval(same, mean, 400)
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert wide.seeds == 3


def test_one_patient_has_a_value_and_no_interval():
    found = interval([records([0.4, 0.6], per_patient=2)], mean, 50)
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_undefined_is_none():
    found = interval([records(range(4))], lambda chosen: float("nan"), 30)
    assert (found.value, found.low, found.resamples) == (None, None, 0)


def test_the_same_numbers_every_time():
    seeds = [records(np.arange(10.0))]
    assert interval(seeds, mean, 50) == interval(seeds, mean, 50)


def test_a_weighted_statistic_has_the_interval_of_the_same_function_called_on_lists():
    rng = np.random.default_rng(5)
    seeds = [records(rng.normal(0, 1, 15), 2) for _ in range(3)]
    others = [records(rng.normal(0, 1, 15), 2) for _ in range(3)]
    weighted = mean_of(lambda record: record["score"])
    assert interval(seeds, weighted, 100) == approx(interval(seeds, mean, 100))
    assert difference(seeds, others, weighted, 100) == approx(difference(seeds, others, mean, 100))


def approx(found):
    exact = found.model_dump(include={"patients", "seeds", "resamples", "undefined"})
    close = {name: pytest.approx(getattr(found, name)) for name in ("value", "low", "high")}
    return Equal(exact | close)


class Equal:
    def __init__(self, fields):
        self.fields = fields

    def __eq__(self, other):
        return other.model_dump() == self.fields


@pytest.mark.parametrize("patients", [8, 40])
def test_the_interval_of_a_normal_mean_covers_it_nineteen_times_in_twenty(patients):
    """600 studies; the share has a standard error of 0.9%. Plain percentiles hold 89% of 8 patients."""
    rng = np.random.default_rng(6)
    weighted = mean_of(lambda record: record["score"])
    covered = 0
    for _ in range(600):
        found = interval([records(rng.normal(0.7, 0.1, patients))], weighted, 300)
        covered += found.low <= 0.7 <= found.high
    assert 0.92 <= covered / 600 <= 0.98


def test_pairing_shrinks_the_interval_of_a_difference():
    rng = np.random.default_rng(7)
    hard = rng.normal(0.7, 0.15, 60)
    first, second = records(hard + 0.05 + rng.normal(0, 0.01, 60)), records(hard)
    weighted = mean_of(lambda record: record["score"])
    paired = difference([first], [second], weighted, 500)
    apart = [interval([arm], weighted, 500) for arm in (first, second)]
    unpaired = np.hypot(*(arm.high - arm.low for arm in apart))
    assert paired.high - paired.low < 0.1 * unpaired
    assert paired.low < 0.05 < paired.high


def test_a_statistic_without_a_value_has_no_interval_either():
    """Every case positive: no AUROC, and no resample can make one."""
    found = interval(
        [[{"patient": f"p{i}", "label": 1, "probabilities": [0.2, 0.8]} for i in range(9)]], of_records(auroc), 50
    )
    assert (found.value, found.low, found.high) == (None, None, None)


def test_resamples_without_a_positive_are_counted_and_half_of_them_are_no_interval():
    cases = [{"patient": f"p{i}", "label": int(i == 0), "probabilities": [0.6, 0.4 + i / 10]} for i in range(4)]
    found = interval([cases], of_records(auroc), 1000)
    assert found.undefined == pytest.approx(1000 * 0.75**4 + 1000 * 0.25**4, abs=60)
    assert found.low is not None
    found = interval([cases[:1] + [{**c, "patient": "p1"} for c in cases[1:]]], of_records(auroc), 1000)
    assert found.undefined == pytest.approx(500, abs=60)
    assert (found.low is None) == (found.undefined > 500)
