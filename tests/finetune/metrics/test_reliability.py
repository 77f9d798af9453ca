import math

import numpy as np
import pytest

from scanfoundry.finetune.metrics.classification import expected_calibration_error
from scanfoundry.finetune.metrics.reliability import around, counted, ece, pooled


def case(seed, shape=(3, 4, 5)):
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    return rng.dirichlet(np.ones(3), count), rng.integers(0, 3, count)


def test_the_same_as_of_all_voxels_in_one_list():
    cases = [case(seed, (2, 3, 3 + seed)) for seed in range(4)]
    records = [{"reliability": counted(*pair)} for pair in cases]
    labels = np.concatenate([y for _, y in cases])
    p = np.concatenate([p for p, _ in cases])
    assert ece(records) == pytest.approx(expected_calibration_error(labels, p, np.ones((1, len(labels))))[0])
    twice = ece.prepare(records)(np.array([[2.0, 0, 1, 0]]))[0]
    assert twice == pytest.approx(ece([records[0], records[0], records[2]]))


def test_counts_as_a_naive_loop():
    p, labels = case(9)
    expected = np.zeros((10, 3))
    for q, label in zip(p, labels, strict=True):
        b = min(9, max(0, math.ceil(q.max() * 10) - 1))
        expected[b] += [1, q.max(), q.argmax() == label]
    assert np.array(counted(p, labels)) == pytest.approx(expected)
    assert pooled([{"reliability": counted(p, labels)}, {"reliability": None}]) == pytest.approx(expected)


def test_cases_without_probabilities_are_left_out():
    record = {"reliability": counted(*case(1))}
    assert ece([record, {"reliability": None}]) == pytest.approx(ece([record]))
    assert math.isnan(ece([{"reliability": None}]))
    assert math.isnan(ece([]))


def test_the_part_of_a_scan_that_is_looked_at():
    truth = np.zeros((10, 20, 30), int)
    assert truth[around(truth)].shape == truth.shape
    truth[4, 10, 10], truth[5, 10, 29] = 1, 2
    assert around(truth, 2) == (slice(2, 8), slice(8, 13), slice(8, 30))
