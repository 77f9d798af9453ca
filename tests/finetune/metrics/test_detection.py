import math

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from scanforge.finetune.metrics.detection import average_precision, iou, match


def boxes(rng, n, axes):
    low = rng.integers(0, 10, (n, axes))
    return np.concatenate([low, low + rng.integers(1, 8, (n, axes))], axis=1).astype(float)


@pytest.mark.parametrize("axes", [2, 3])
def test_iou_as_counted_on_a_grid_and_as_monai(axes):
    from monai.data.box_utils import box_iou

    rng = np.random.default_rng(axes)
    first, second = boxes(rng, 6, axes), boxes(rng, 5, axes)

    def voxels(box):
        mask = np.zeros((20,) * axes, bool)
        mask[tuple(slice(int(a), int(b)) for a, b in zip(box[:axes], box[axes:], strict=True))] = True
        return mask

    counted = [[(voxels(a) & voxels(b)).sum() / (voxels(a) | voxels(b)).sum() for b in second] for a in first]
    assert iou(first, second) == pytest.approx(np.array(counted))
    assert iou(first, second) == pytest.approx(box_iou(first, second))


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
    hits = match(found, scores, truth, 0.1)
    assert hits == [False, True, True]
    assert average_precision(scores, np.array(hits), 2) == pytest.approx(2 / 3)


def test_a_true_box_is_found_once():
    truth = np.array([[0, 0, 4, 4]], float)
    found = np.array([[0, 0, 4, 5], [0, 0, 4, 4]], float)
    assert match(found, np.array([0.4, 0.6]), truth, 0.5) == [False, True]


def test_degenerate_cases():
    none = np.zeros((0, 4))
    assert match(none, np.zeros(0), np.array([[0, 0, 1, 1.0]]), 0.1) == []
    assert match(np.array([[0, 0, 1, 1.0]]), np.ones(1), none, 0.1) == [False]
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0
    assert math.isnan(average_precision(np.ones(2), np.zeros(2, bool), 0))
