import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.finetune.metrics import surface
from scanfoundry.finetune.metrics.surface import distances, surface_scores

SPACING = (3.0, 0.7, 1.1)


def naive(prediction, truth, spacing, tolerance):
    """By a double loop over surface voxels; a voxel is of the surface if one of its faces is not within the mask."""

    def points(mask):
        axes = [a for a in range(3) if mask.shape[a] > 1] or [2]
        found = []
        for index in np.argwhere(mask):
            for axis in axes:
                beside = [index + step * (np.arange(3) == axis) for step in (-1, 1)]
                if not all(all(0 <= b[a] < mask.shape[a] for a in range(3)) and mask[tuple(b)] for b in beside):
                    found.append(index * np.array(spacing))
                    break
        return found

    first, second = points(prediction), points(truth)
    apart = [[min(math.dist(p, q) for q in others) for p in own] for own, others in ((first, second), (second, first))]
    nsd = sum(d <= tolerance for one in apart for d in one) / (len(first) + len(second))
    return nsd, max(np.percentile(one, 95) for one in apart)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(4, 5, 6), (1, 6, 7), (3, 1, 5), (1, 1, 6), (1, 1, 1)]))
def test_equals_a_double_loop(seed, shape):
    rng = np.random.default_rng(seed)
    prediction, truth = (rng.random((2, *shape)) < rng.choice([0.1, 0.5, 0.9])).astype(np.uint8)
    prediction.flat[rng.integers(truth.size)] = truth.flat[rng.integers(truth.size)] = 1
    (found,) = surface_scores(prediction, truth, 1, SPACING, 1.2)
    assert found == pytest.approx(naive(prediction > 0, truth > 0, SPACING, 1.2))


def blobs(seed, shape):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    smooth = np.stack([gaussian_filter(rng.normal(size=shape), 2) for _ in range(3)])
    return smooth.argmax(0).astype(np.uint8)


@pytest.mark.parametrize("shape", [(14, 16, 18), (1, 30, 28)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_monai(seed, shape):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    prediction, truth = blobs(seed, shape), blobs(seed + 100, shape)
    flat = shape[0] == 1  # MONAI wants a slice as 2D
    hot = [
        torch.nn.functional.one_hot(torch.from_numpy((x[0] if flat else x).astype(int)), 3).movedim(-1, 0)[None]
        for x in (prediction, truth)
    ]
    spacing = SPACING[1:] if flat else SPACING
    nsd = compute_surface_dice(*hot, class_thresholds=[1.5, 1.5], spacing=spacing)[0].tolist()
    hd95 = compute_hausdorff_distance(*hot, percentile=95, spacing=spacing)[0].tolist()
    found = surface_scores(prediction, truth, 2, SPACING, 1.5)
    assert [s.nsd for s in found] == pytest.approx(nsd, abs=1e-6)
    assert [s.hd95 for s in found] == pytest.approx(hd95, abs=1e-5)


def test_empty_masks():
    empty, full = np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8)
    full[1, 1:3, 2] = 1
    (both,) = surface_scores(empty, empty, 1, SPACING, 1.0)
    assert math.isnan(both.nsd)
    assert math.isnan(both.hd95)
    diagonal = math.dist((0, 0, 0), (2 * 3.0, 3 * 0.7, 4 * 1.1))
    for pair in ((empty, full), (full, empty)):
        (one,) = surface_scores(*pair, 1, SPACING, 1.0)
        assert one == (0.0, pytest.approx(diagonal))


def test_predicting_nothing_is_never_better_than_predicting_something():
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[0, 0, 0] = 1
    worst = np.zeros_like(truth)
    worst[-1, -1, -1] = 1
    (nothing,), (far) = (
        surface_scores(np.zeros_like(truth), truth, 1, SPACING, 1.0),
        surface_scores(worst, truth, 1, SPACING, 1.0),
    )
    assert nothing.hd95 == pytest.approx(far[0].hd95)
    worst[1, 1, 1] = 1
    assert surface_scores(worst, truth, 1, SPACING, 1.0)[0].hd95 < nothing.hd95


def test_one_voxel_and_the_tolerance_itself_counts():
    truth, prediction = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    truth[0, 0, 0] = prediction[1, 0, 0] = 1
    assert surface_scores(prediction, truth, 1, SPACING, 3.0) == [(1.0, 3.0)]
    assert surface_scores(prediction, truth, 1, SPACING, 2.9) == [(0.0, 3.0)]


def test_a_class_beyond_the_last_one_is_not_looked_at():
    truth = np.array([[[0, 1, 5]]], np.uint8)
    assert surface_scores(truth, truth, 1, SPACING, 1.0) == [(1.0, 0.0)]


def test_noise_goes_by_a_distance_map_to_the_same_numbers(monkeypatch):
    rng = np.random.default_rng(0)
    first, second = (np.argwhere(rng.random((9, 10, 11)) < 0.2) + 3 for _ in range(2))
    step = np.array(SPACING)
    tree = distances(first, second, step)
    monkeypatch.setattr(surface, "TREE_POINTS", 10)
    assert distances(first, second, step) == pytest.approx(tree)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes differ"):
        surface_scores(np.zeros((1, 2, 3), int), np.zeros((3, 2, 1), int), 1, SPACING, 1.0)
