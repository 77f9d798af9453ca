import numpy as np
import pytest

from scanforge.finetune.metrics.intervals import difference, interval


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


def test_paired_difference_is_narrower_than_the_arms():
    rng = np.random.default_rng(2)
    hard = rng.normal(0.7, 0.15, 60)
    better = hard + 0.05 + rng.normal(0, 0.01, 60)
    gain = difference([records(better)], [records(hard)], mean, 500)
    assert gain.low < 0.05 < gain.high
    assert gain.high - gain.low < 0.02 < interval([records(hard)], mean, 500).high - gain.value


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


def test_undefined_is_none_and_counted():
    found = interval([records(range(4))], lambda chosen: float("nan"), 30)
    assert (found.value, found.low, found.undefined) == (None, None, 30)


def test_the_same_numbers_every_time():
    seeds = [records(np.arange(10.0))]
    assert interval(seeds, mean, 50) == interval(seeds, mean, 50)
