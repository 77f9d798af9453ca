import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
)

from scanforge.finetune.metrics import classification as ours


def draw(n, k, seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(k), n).round(2)
    return rng.integers(0, k, n), probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_as_scikit_learn(seed):
    labels, p = draw(30, 2, seed)
    assert ours.auroc(labels, p) == pytest.approx(roc_auc_score(labels, p[:, 1]))
    assert ours.average_precision(labels, p) == pytest.approx(average_precision_score(labels, p[:, 1]))
    assert ours.accuracy(labels, p) == pytest.approx(accuracy_score(labels, p.argmax(1)))
    assert ours.balanced_accuracy(labels, p) == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))


def test_auroc_of_several_classes_as_a_naive_count_of_pairs():
    labels, p = draw(40, 3, 7)
    per_class = []
    for k in range(3):
        pairs = [(p[i, k], p[j, k]) for i in range(40) for j in range(40) if labels[i] == k and labels[j] != k]
        per_class.append(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    assert ours.auroc(labels, p) == pytest.approx(np.mean(per_class))
    assert ours.auroc(labels, p) == pytest.approx(roc_auc_score(labels, p, multi_class="ovr"))


def test_ece_as_a_naive_loop():
    labels, p = draw(200, 3, 3)
    expected = 0.0
    for b in range(10):
        inside = [i for i in range(200) if b / 10 < p[i].max() <= (b + 1) / 10]
        if inside:
            hit = np.mean([p[i].argmax() == labels[i] for i in inside])
            expected += len(inside) / 200 * abs(hit - np.mean([p[i].max() for i in inside]))
    assert ours.expected_calibration_error(labels, p) == pytest.approx(expected)


def test_one_class_has_no_ranking_but_an_accuracy():
    labels, p = np.zeros(4, int), np.array([[0.9, 0.1]] * 4)
    assert math.isnan(ours.auroc(labels, p))
    assert math.isnan(ours.average_precision(labels, p))
    assert ours.accuracy(labels, p) == ours.balanced_accuracy(labels, p) == 1.0
    assert ours.expected_calibration_error(labels, p) == pytest.approx(0.1)


def test_no_cases():
    labels, p = np.zeros(0, int), np.zeros((0, 2))
    assert all(math.isnan(f(labels, p)) for f in (ours.auroc, ours.accuracy, ours.balanced_accuracy))
    assert math.isnan(ours.expected_calibration_error(labels, p))
