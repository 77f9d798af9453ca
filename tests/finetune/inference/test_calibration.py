import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from scanfoundry.finetune.inference.calibration import (
    COLDEST,
    HOTTEST,
    drawn_spots,
    fit_temperature,
    negative_log_likelihood,
    temperature_of,
    tempered,
)
from scanfoundry.finetune.metrics.classification import expected_calibration_error


def overconfident(n, scale, seed=0, k=3):
    """Logits that are `scale` times as large as the probabilities that the labels were drawn by."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (n, k))
    labels = (softmax(honest, axis=1).cumsum(1) < rng.random((n, 1))).sum(1)
    return honest * scale, np.minimum(labels, k - 1)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_scale_is_found_and_the_ece_falls(scale):
    logits, labels = overconfident(20_000, scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    weights = np.ones((1, len(labels)))
    before = expected_calibration_error(labels, softmax(logits, axis=1), weights)[0]
    after = expected_calibration_error(labels, softmax(logits / temperature, axis=1), weights)[0]
    assert after < 0.01
    assert scale == 1.0 or before > 0.05


def test_the_same_as_a_search_over_a_grid_and_as_lbfgs():
    logits, labels = overconfident(300, 2.2, seed=1)
    temperature = fit_temperature(logits, labels)
    grid = np.linspace(0.2, 10, 20_000)
    losses = [-log_softmax(logits / t, axis=1)[np.arange(300), labels].mean() for t in grid[::20]]
    assert temperature == pytest.approx(grid[::20][int(np.argmin(losses))], abs=0.02)

    z, y, t = torch.from_numpy(logits), torch.from_numpy(labels), torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([t], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(z / t, y)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert temperature == pytest.approx(t.item(), rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 4), st.sampled_from([0.01, 1.0, 30.0, 1e4]))
def test_never_worse_than_leaving_it_and_always_within_bounds(seed, n, k, scale):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, scale, (n, k)), rng.integers(0, k, n)
    temperature = fit_temperature(logits, labels)
    assert COLDEST - 1e-9 <= temperature <= HOTTEST + 1e-9
    assert negative_log_likelihood(logits / temperature, labels) <= negative_log_likelihood(logits, labels)


def test_cases_that_cannot_tell_leave_it_at_one():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    assert fit_temperature(logits, logits.argmax(1)) == 1.0  # every case right
    assert fit_temperature(logits, np.zeros(3, int)) == 1.0  # one class
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, int)) == 1.0
    assert temperature_of([]) == 1.0


def test_wrong_and_sure_is_cooled_as_far_as_the_bound():
    logits = np.array([[50.0, 0.0], [0.0, 50.0]] * 4)
    assert fit_temperature(logits, 1 - logits.argmax(1)) == pytest.approx(HOTTEST)


def test_probabilities_stand_for_their_logits():
    logits, labels = overconfident(500, 3.0)
    p = softmax(logits, axis=1)
    assert tempered(p, 1.0) is p
    assert tempered(p, 2.5) == pytest.approx(softmax(logits / 2.5, axis=1))
    records = [{"label": int(y), "probabilities": q.tolist()} for y, q in zip(labels, p, strict=True)]
    assert temperature_of(records) == pytest.approx(fit_temperature(logits, labels), rel=1e-4)
    assert np.array_equal(tempered(p, 2.5).argmax(1), p.argmax(1))
    assert np.isfinite(tempered(np.array([0.0, 1.0]), 3.0)).all()


def test_voxels_are_drawn_around_the_truth_each_once_and_the_same_every_time():
    truth = np.zeros((20, 30, 40), np.uint8)
    truth[8:10, 10:12, 30:39] = 2
    spots = drawn_spots(truth, 500)
    assert spots.shape == (500, 3)
    assert len(np.unique(spots, axis=0)) == 500
    assert np.array_equal(spots, drawn_spots(truth, 500))
    assert (spots >= [3, 5, 25]).all()
    assert (spots < [15, 17, 40]).all()
    everything = drawn_spots(truth, 10**6)
    assert len(everything) == 12 * 12 * 15
    assert (truth[tuple(everything.T)] == 2).sum() == (truth == 2).sum()
    assert len(drawn_spots(np.zeros((3, 4, 5), np.uint8), 100)) == 60
