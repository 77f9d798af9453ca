"""Ridge from sums against scikit-learn's on the rows."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from scanfoundry.pretrain.probes.ridge import Sums, ridge


@pytest.mark.parametrize("strength", [1e-4, 1.0])
def test_it_is_the_ridge_regression_of_all_rows(strength):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 7)) * rng.uniform(0.1, 50, 7) + rng.uniform(-100, 100, 7)
    labels, weights = rng.integers(0, 3, 200), rng.uniform(0, 3, (2, 200))
    sums = [Sums.zeros(2, 7, 3, torch.device("cpu")) for _ in range(2)]
    for part in (slice(0, 50), slice(50, 120)):
        given = (rows[part], labels[part], weights[:, part])
        sums[0].add(*(torch.from_numpy(each) for each in given))
    sums[1].add(*(torch.from_numpy(each) for each in (rows[120:], labels[120:], weights[:, 120:])))
    for weighting in (0, 1):
        w = weights[weighting]
        mean = np.average(rows, axis=0, weights=w)
        spread = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=w))
        standard = (rows - mean) / spread
        reference = Ridge(alpha=strength * w.sum()).fit(standard, np.eye(3)[labels], sample_weight=w)
        found, intercept = ridge(sums[0] + sums[1], weighting, strength)
        expected = reference.predict(standard)
        np.testing.assert_allclose(rows @ found.numpy() + intercept.numpy(), expected, rtol=1e-7, atol=1e-8)


def test_features_that_are_constant_or_repeated_break_nothing():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(50, 2)))
    rows = torch.cat((rows, rows, torch.full((50, 1), 1e6), torch.zeros(50, 1)), dim=1)
    sums = Sums.zeros(1, 6, 2, torch.device("cpu"))
    sums.add(rows, (rows[:, 0] > 0).long(), torch.ones(1, 50))
    weights, intercept = ridge(sums, 0, 1e-4)
    assert torch.isfinite(weights).all()
    assert not weights[4:].any()
    assert ((rows @ weights + intercept).argmax(1) == (rows[:, 0] > 0)).double().mean() > 0.9
