import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    recall_score,
    roc_auc_score,
)

from scanfoundry.finetune.metrics import classification as ours

NAMED = [ours.auroc, ours.average_precision, ours.accuracy, ours.balanced_accuracy, ours.brier]


def one(score, labels, p, **options):
    return float(score(labels, p, np.ones((1, len(labels))), **options)[0])


def draw(n, k, seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(k), n).round(1) + 0.01  # with ties
    return rng.integers(0, k, n), probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_as_scikit_learn(seed):
    labels, p = draw(30, 2, seed)
    assert one(ours.auroc, labels, p) == pytest.approx(roc_auc_score(labels, p[:, 1]))
    assert one(ours.average_precision, labels, p) == pytest.approx(average_precision_score(labels, p[:, 1]))
    assert one(ours.accuracy, labels, p) == pytest.approx(accuracy_score(labels, p.argmax(1)))
    assert one(ours.balanced_accuracy, labels, p) == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))
    assert one(ours.brier, labels, p) == pytest.approx(brier_score_loss(labels, p[:, 1]))
    assert one(ours.recall, labels, p, label=1) == pytest.approx(recall_score(labels, p.argmax(1)))
    assert one(ours.recall, labels, p, label=0) == pytest.approx(recall_score(labels, p.argmax(1), pos_label=0))


@pytest.mark.parametrize("seed", range(5))
def test_three_classes_as_scikit_learn(seed):
    labels, p = draw(40, 3, seed)
    each = [one(ours.auroc_of_class, labels, p, label=k) for k in range(3)]
    assert each == pytest.approx([roc_auc_score(labels == k, p[:, k]) for k in range(3)])
    assert one(ours.auroc, labels, p) == pytest.approx(roc_auc_score(labels, p, multi_class="ovr"))
    expected = np.mean([average_precision_score(labels == k, p[:, k]) for k in range(3)])
    assert one(ours.average_precision, labels, p) == pytest.approx(expected)
    assert one(ours.balanced_accuracy, labels, p) == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))
    assert one(ours.brier, labels, p) == pytest.approx(brier_score_loss(labels, p, labels=[0, 1, 2]))


def test_auroc_of_several_classes_as_a_naive_count_of_pairs():
    labels, p = draw(40, 3, 7)
    per_class = []
    for k in range(3):
        pairs = [(p[i, k], p[j, k]) for i in range(40) for j in range(40) if labels[i] == k and labels[j] != k]
        per_class.append(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    assert one(ours.auroc, labels, p) == pytest.approx(np.mean(per_class))


def naive_ece(labels, p):
    total = 0.0
    for b in range(10):
        inside = [i for i in range(len(labels)) if b / 10 < p[i].max() <= (b + 1) / 10]
        if inside:
            hit = np.mean([p[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(labels) * abs(hit - np.mean([p[i].max() for i in inside]))
    return total


def test_ece_as_a_naive_loop():
    labels, p = draw(200, 3, 3)
    assert one(ours.expected_calibration_error, labels, p) == pytest.approx(naive_ece(labels, p))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 12))
def test_a_weight_is_a_case_that_occurs_so_often(seed, k, n):
    """Any weighting of a small set, whatever classes are left in it, is the list with its cases repeated."""
    labels, p = draw(n, k, seed)
    times = np.random.default_rng(seed).integers(0, 4, (3, n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for score in [*NAMED, ours.expected_calibration_error]:
            weighted = score(labels, p, times.astype(float))
            repeated = [one(score, np.repeat(labels, row), np.repeat(p, row, axis=0)) for row in times]
            assert weighted == pytest.approx(np.array(repeated), nan_ok=True)


def test_one_class_has_no_ranking_but_an_accuracy():
    labels, p = np.zeros(4, int), np.array([[0.9, 0.1]] * 4)
    assert math.isnan(one(ours.auroc, labels, p))
    assert math.isnan(one(ours.average_precision, labels, p))
    assert math.isnan(one(ours.recall, labels, p, label=1))
    assert one(ours.accuracy, labels, p) == one(ours.balanced_accuracy, labels, p) == 1.0
    assert one(ours.expected_calibration_error, labels, p) == pytest.approx(0.1)
    assert one(ours.brier, labels, p) == pytest.approx(0.01)


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    labels, p = np.array([0, 0, 1, 1]), np.array([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.7]])
    expected = np.mean([roc_auc_score(labels == k, p[:, k]) for k in (0, 1)])
    assert one(ours.auroc, labels, p) == pytest.approx(expected)
    assert math.isnan(one(ours.auroc_of_class, labels, p, label=2))


def test_no_cases():
    labels, p = np.zeros(0, int), np.zeros((0, 2))
    assert all(math.isnan(one(score, labels, p)) for score in [*NAMED, ours.expected_calibration_error])


def test_records():
    labels, p = draw(20, 3, 1)
    records = [{"label": int(k), "probabilities": q.tolist()} for k, q in zip(labels, p, strict=True)]
    assert ours.of_records(ours.brier)(records) == pytest.approx(one(ours.brier, labels, p))
