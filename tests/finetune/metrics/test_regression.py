import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from scanfoundry.finetune.metrics import regression as ours

ALL = [ours.mae, ours.rmse, ours.r2, ours.pearson, ours.spearman]


def one(score, truth, prediction):
    return float(score(truth, prediction, np.ones((1, len(truth))))[0])


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn_and_scipy(seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(1e4, 3, 30).round()  # far from zero, with ties
    prediction = (truth + rng.normal(1, 2, 30)).round()
    assert one(ours.mae, truth, prediction) == pytest.approx(mean_absolute_error(truth, prediction))
    assert one(ours.rmse, truth, prediction) == pytest.approx(root_mean_squared_error(truth, prediction))
    assert one(ours.r2, truth, prediction) == pytest.approx(r2_score(truth, prediction))
    assert one(ours.pearson, truth, prediction) == pytest.approx(stats.pearsonr(truth, prediction)[0])
    assert one(ours.spearman, truth, prediction) == pytest.approx(stats.spearmanr(truth, prediction)[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 10))
def test_a_weight_is_a_case_that_occurs_so_often(seed, n):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 5, (2, n)).astype(float)
    times = rng.integers(0, 4, (3, n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for score in ALL:
            repeated = [one(score, np.repeat(truth, row), np.repeat(prediction, row)) for row in times]
            weighted = score(truth, prediction, times.astype(float))
            assert weighted == pytest.approx(np.array(repeated), nan_ok=True, abs=1e-12)


def test_without_spread_there_is_no_correlation():
    same, other = np.full(5, 0.1), np.arange(5.0)
    assert math.isnan(one(ours.r2, same, other))
    for score in (ours.pearson, ours.spearman):
        assert math.isnan(one(score, same, other))
        assert math.isnan(one(score, other, same))
    assert one(ours.r2, other, np.full(5, 2.0)) == pytest.approx(0)
    assert one(ours.mae, same, same) == one(ours.rmse, same, same) == 0


def test_one_case_and_none():
    single, none = np.array([3.0]), np.zeros(0)
    assert one(ours.mae, single, single + 2) == one(ours.rmse, single, single + 2) == 2
    assert all(math.isnan(one(score, single, single)) for score in ALL[2:])
    assert all(math.isnan(one(score, none, none)) for score in ALL)
