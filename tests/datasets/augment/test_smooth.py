"""The matrices of a blur are those of its definition."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from scanfoundry.datasets.augment.smooth import gaussian


@given(st.lists(st.floats(0.0, 6.0), min_size=1, max_size=4), st.integers(2, 40))
def test_a_blur_weighs_by_the_distance_and_sums_to_one(sigma, length):
    widths = np.array([[0.0, 0.0, each] for each in sigma])
    *others, found = gaussian(widths, (1, 1, length), torch.device("cpu"))
    assert others == [None, None]
    if not any(sigma):
        assert found is None
        return
    for each, matrix in zip(sigma, found, strict=True):
        distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        weight = np.exp(-0.5 * (distance / max(each, 1e-2)) ** 2)
        weight[weight < 1e-6] = 0  # what is cut off
        np.testing.assert_allclose(matrix, weight / weight.sum(1, keepdims=True), atol=2e-6)
