import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from scanfoundry.finetune.boxes.geometry import iou
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.metrics.detection import average_precision, match


def boxes(rng, n, axes):
    low = rng.integers(0, 10, (n, axes))
    return np.concatenate([low, low + rng.integers(1, 8, (n, axes))], axis=1).astype(float)


def matched(found, scores, truth, threshold):
    """All of one class."""
    return match(Boxes(found, np.zeros(len(found), int), scores), Boxes(truth, np.zeros(len(truth), int)), threshold)


def naive_match(found, scores, labels, truth, truth_labels, threshold):
    """COCO's greedy rule in plain loops, for scores and overlaps without ties."""
    free, hits = set(range(len(truth))), [False] * len(found)
    for i in sorted(range(len(found)), key=lambda i: -scores[i]):
        best, best_iou = None, threshold
        for j in free:
            overlap = iou(found[i : i + 1], truth[j : j + 1])[0, 0]
            if labels[i] == truth_labels[j] and overlap >= best_iou:
                best, best_iou = j, overlap
        if best is not None:
            free.remove(best)
            hits[i] = True
    return hits


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(0, 6), st.sampled_from([2, 3]))
def test_match_as_a_double_loop_with_classes(seed, n, m, axes):
    rng = np.random.default_rng(seed)
    found, truth = (boxes(rng, size, axes) + rng.random((size, 2 * axes)) / 4 for size in (n, m))
    labels, truth_labels, scores = rng.integers(0, 2, n), rng.integers(0, 2, m), rng.permutation(n) / 10
    expected = naive_match(found, scores, labels, truth, truth_labels, 0.1)
    assert match(Boxes(found, labels, scores), Boxes(truth, truth_labels), 0.1) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_match_does_not_depend_on_the_order_however_many_scores_and_boxes_are_equal(seed):
    rng = np.random.default_rng(seed)
    found, truth = (rng.integers(0, 3, (n, 2)) @ np.eye(2, 4) for n in (8, 4))
    found, truth = found + [0, 0, 2, 2] + np.tile(found[:, :2], 2) * [0, 0, 1, 1], truth + [0, 0, 2, 2]
    truth[:, 2:] += truth[:, :2]
    scores, labels, truth_labels = rng.integers(0, 2, 8) / 2, rng.integers(0, 2, 8), rng.integers(0, 2, 4)
    hits = np.array(match(Boxes(found, labels, scores), Boxes(truth, truth_labels), 0.3))
    a, b = rng.permutation(8), rng.permutation(4)
    again = np.array(match(Boxes(found[a], labels[a], scores[a]), Boxes(truth[b], truth_labels[b]), 0.3))

    def listed(h, order):
        rows = zip(scores[order], labels[order], found[order], h, strict=True)
        return sorted((score, label, *box, hit) for score, label, box, hit in rows)

    assert listed(hits, np.arange(8)) == listed(again, a)


def naive_ap(scores, hits, n_truth):
    """Precision at the lowest threshold that reaches each recall, the best of those at or beyond it."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        kept = [h for s, h in zip(scores, hits, strict=True) if s >= threshold]
        points.append((sum(kept) / n_truth, sum(kept) / len(kept)))
    area, before = 0.0, 0.0
    for recall, _ in points:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("seed", range(10))
def test_average_precision_as_a_double_loop(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, 25) / 8  # with ties
    hits = rng.random(25) < 0.5
    n_truth = int(hits.sum()) + 3
    assert average_precision(scores, hits, n_truth) == pytest.approx(naive_ap(scores, hits, n_truth))


def test_average_precision_lies_on_scikit_learns_curve():
    rng = np.random.default_rng(4)
    scores, hits = rng.random(50), rng.random(50) < 0.4
    precision, recall, _ = precision_recall_curve(hits, scores)
    envelope = np.maximum.accumulate(precision)
    expected = float((-np.diff(recall) * envelope[:-1]).sum())
    assert average_precision(scores, hits, int(hits.sum())) == pytest.approx(expected)


def test_the_toy_case_of_the_references():
    # two true boxes, three predicted, the false one scored highest: AP 2/3
    truth = np.array([[0, 0, 4, 4], [10, 10, 14, 14]], float)
    found = np.array([[20, 20, 24, 24], [0, 0, 4, 4], [10, 10, 14, 14]], float)
    scores = np.array([0.9, 0.8, 0.7])
    hits = matched(found, scores, truth, 0.1)
    assert hits == [False, True, True]
    assert average_precision(scores, np.array(hits), 2) == pytest.approx(2 / 3)


def test_a_true_box_is_found_once_and_only_by_its_class():
    truth = np.array([[0, 0, 4, 4]], float)
    found = np.array([[0, 0, 4, 5], [0, 0, 4, 4]], float)
    assert matched(found, np.array([0.4, 0.6]), truth, 0.5) == [False, True]
    of_two_classes = Boxes(found, np.array([1, 0]), np.array([0.4, 0.6]))
    assert match(of_two_classes, Boxes(truth, np.array([1])), 0.5) == [True, False]


def test_degenerate_cases():
    none = np.zeros((0, 4))
    assert matched(none, np.zeros(0), np.array([[0, 0, 1, 1.0]]), 0.1) == []
    assert matched(np.array([[0, 0, 1, 1.0]]), np.ones(1), none, 0.1) == [False]
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0
    assert math.isnan(average_precision(np.ones(2), np.zeros(2, bool), 0))
