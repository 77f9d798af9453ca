"""Nearest neighbours against a plain formula; the linear probe chooses; both know noise from signal."""

import math

import numpy as np
import pytest

from scanfoundry.backbones.probes.classification import STRENGTHS, _strength, logistic, nearest, scores


def naive_votes(train, labels, row, classes, neighbours, temperature):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    found = sorted(((cosine(row, other), label) for other, label in zip(train, labels, strict=True)), reverse=True)
    votes = [0.0] * classes
    for similarity, label in found[:neighbours]:
        votes[label] += math.exp(similarity / temperature)
    return [vote / sum(votes) for vote in votes]


@pytest.mark.parametrize("neighbours", [1, 5, 100])
def test_votes_are_those_of_the_plain_formula(neighbours):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(30, 6)).astype(np.float32), rng.normal(size=(7, 6)).astype(np.float32)
    labels = rng.integers(0, 3, 30)
    votes = nearest(train * rng.uniform(0.1, 9, (30, 1)), labels, test, 3, neighbours, 0.07)
    for row, vote in zip(test.tolist(), votes, strict=True):
        assert vote == pytest.approx(naive_votes(train.tolist(), labels.tolist(), row, 3, neighbours, 0.07), rel=1e-4)


def test_features_that_are_all_zero_break_nothing():
    zero = np.zeros((6, 4), np.float32)
    votes = nearest(zero, np.array([0, 1] * 3), zero, 2, 20, 0.07)
    assert votes == pytest.approx(np.full((6, 2), 0.5))
    assert np.isfinite(logistic(zero, np.array([0, 1] * 3), list("aabbcc"), zero)).all()


def data(signal, seed=0, n=120, features=40):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 0, 0, 1, 2], n // 5))
    rows = rng.normal(size=(n, features)) * rng.uniform(0.01, 100, features)
    rows[:, :3] += signal * np.eye(3)[labels] * rows.std(0)[:3]
    return rows.astype(np.float32), labels


@pytest.mark.parametrize(("signal", "low", "high"), [(0.0, 0.3, 0.7), (6.0, 0.97, 1.0)])
def test_the_linear_probe_tells_signal_from_noise(signal, low, high):
    rows, labels = data(signal)
    found = scores(labels[80:], logistic(rows[:80], labels[:80], [str(i) for i in range(80)], rows[80:]))
    assert low <= found["auroc"] <= high
    assert (found["balanced_accuracy"] > 0.85) == (signal > 0)


def test_regularisation_is_chosen_on_other_patients_than_it_is_fitted_to():
    """Patients' own features, repeated in each of their scans, serve nobody else: only folds by patient see that."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 6)
    labels = rng.permutation(np.repeat([0, 1], 10))[patients]
    rows = rng.normal(size=(20, 200))[patients] + 0.01 * rng.normal(size=(120, 200))
    by_patient, by_scan = _strength(rows, labels, patients), _strength(rows, labels, np.arange(120))
    assert by_patient <= STRENGTHS[2] < by_scan
    assert _strength(rows[:6], np.array([0, 1] * 3), np.zeros(6)) == 1.0  # one patient: nothing to choose on


def test_scores_are_balanced_and_macro():
    labels = np.array([0, 0, 0, 0, 1, 2])
    found = scores(labels, np.eye(3)[[0, 0, 0, 0, 0, 2]])
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["auroc"] == pytest.approx((0.75 + 0.5 + 1.0) / 3)
