import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.boxes.anchors import (
    CELLS,
    _k_means,
    fit_anchors,
    mean_max_iou,
    plan_anchors,
    plan_strides,
)
from scanfoundry.finetune.boxes.geometry import iou

PYRAMID_2D = [(1, 2**i, 2**i) for i in range(6)]
PYRAMID_3D = [(2**i, 2**i, 2**i) for i in range(6)]


def cloud(n, axes, seed=0):
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(3, 0.5, (n, 1)) + rng.normal(0, 0.3, (n, axes)))


def centred(sizes):
    return np.concatenate([-sizes / 2, sizes / 2], axis=1)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_objective_is_the_mean_best_iou(axes):
    sizes, anchors = cloud(20, axes), cloud(5, axes, 1)
    assert mean_max_iou(sizes, anchors) == pytest.approx(iou(centred(sizes), centred(anchors)).max(1).mean())


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 3))
@settings(max_examples=8, deadline=None)
def test_never_worse_than_k_means_and_always_the_same(seed, n, axes):
    sizes = cloud(n, axes, seed)
    anchors, reached = fit_anchors(sizes, 4)
    assert reached == pytest.approx(mean_max_iou(sizes, anchors))
    assert reached >= mean_max_iou(sizes, _k_means(sizes, 4)) - 1e-12
    assert np.array_equal(anchors, fit_anchors(sizes, 4)[0])


def test_as_good_as_trying_everything():
    sizes = np.array([[4.0, 9], [5, 8], [12, 6], [20, 22], [21, 18], [7, 7]])
    grid = np.array(list(product(np.linspace(4, 22, 13), repeat=2)))
    tried = max(mean_max_iou(sizes, np.stack([a, b])) for a in grid for b in grid)
    assert fit_anchors(sizes, 2)[1] >= tried


def test_better_than_k_means_where_there_is_room_and_fast():
    sizes = cloud(400, 3)
    started = time.process_time()
    reached = fit_anchors(sizes, 12)[1]
    assert time.process_time() - started < 2
    assert reached > mean_max_iou(sizes, _k_means(sizes, 12)) + 0.005


def test_small_anchors_lie_on_the_fine_level():
    sizes = cloud(100, 2)
    anchors, reached = plan_anchors(sizes, PYRAMID_2D[2:5])
    volume = np.array(anchors).prod(-1)
    assert volume.shape == (3, 3)
    assert reached == pytest.approx(mean_max_iou(sizes, np.array(anchors).reshape(-1, 2)), abs=0.01)
    assert volume[0].max() <= volume[1].min()
    assert volume[1].max() <= volume[2].min()
    assert reached > 0.7


def test_few_boxes_stand_for_a_range_of_sizes():
    one, _ = plan_anchors(np.array([[10.0, 20.0]]), PYRAMID_2D[2:5])
    volume = np.array(one).prod(-1).ravel()
    assert volume.min() < 100 < 400 < volume.max()


def test_findings_of_one_size_belong_to_one_level():
    """The others get its anchors at their own scale: levels do not compete for the same findings."""
    sizes = np.random.default_rng(0).uniform(19, 23, (80, 2))
    anchors, reached = plan_anchors(sizes, PYRAMID_2D[2:5])
    assert reached > 0.9
    fine, middle, coarse = np.array(anchors)
    assert middle == pytest.approx(np.array([[21.0, 21]] * 3), abs=2.5)
    assert fine == pytest.approx(middle / 2, abs=0.02)  # rounded to 0.01
    assert coarse == pytest.approx(middle * 2, abs=0.02)


def test_outliers_are_not_planned_for():
    sizes, strides = cloud(400, 2), PYRAMID_2D[2:5]
    wild = np.concatenate([sizes, [[4000.0, 4000]]])
    assert np.array(plan_anchors(wild, strides)[0]).max() < 1.2 * np.array(plan_anchors(sizes, strides)[0]).max()


def test_no_box_and_degenerate_boxes_are_refused():
    with pytest.raises(UserError, match="none of the training cases has a box"):
        plan_anchors(np.zeros((0, 2)), PYRAMID_2D[2:5])
    with pytest.raises(UserError, match="no extent"):
        plan_anchors(np.array([[4.0, 0.0]]), PYRAMID_2D[2:5])


def test_small_boxes_get_fine_levels_within_memory():
    six, large = np.full((20, 2), 6.0), np.full((20, 2), 50.0)
    assert plan_strides(six, PYRAMID_2D, (1, 256, 256)) == [(1, 2, 2), (1, 4, 4), (1, 8, 8)]
    assert plan_strides(large, PYRAMID_2D, (1, 256, 256)) == [(1, 4, 4), (1, 8, 8), (1, 16, 16)]
    mixed = np.concatenate([six, np.full((20, 2), 120.0)])
    assert plan_strides(mixed, PYRAMID_2D, (1, 256, 256)) == PYRAMID_2D[1:5]
    for patch in [(96, 96, 96), (128, 160, 160)]:
        strides = plan_strides(np.full((20, 3), 6.0), PYRAMID_3D, patch)
        assert np.prod(np.array(patch) / strides[0]) <= CELLS
        assert strides[0] == {96: (2, 2, 2), 128: (4, 4, 4)}[patch[0]]


def test_a_coarse_encoder_gives_what_it_has():
    assert plan_strides(np.full((9, 3), 9.0), [(16, 16, 16)], (16, 64, 64)) == [
        (16, 16, 16), (16, 32, 32), (16, 64, 64)
    ]  # fmt: skip
