import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.finetune.boxes.windows import (
    looked_at,
    quarter_turn,
    sliding_windows,
    training_centre,
    trust,
    turnable,
)
from scanfoundry.finetune.cases.boxes import Boxes

sizes = st.tuples(*[st.integers(1, 40)] * 3)
patches = st.tuples(*[st.sampled_from([1, 4, 8, 16])] * 3)


@given(sizes, patches, st.sampled_from([0.0, 0.25, 0.5]))
@settings(max_examples=80, deadline=None)
def test_windows_cover_the_scan_and_stay_on_its_grid(shape, patch, overlap):
    seen = np.zeros(shape, bool)
    for window in sliding_windows(shape, patch, overlap):
        low = (window.centre - np.array(patch) / 2).astype(int)
        assert (low == window.centre - np.array(patch) / 2).all()
        high = low + patch
        for n, p, a, b in zip(shape, patch, low, high, strict=True):
            assert (a >= 0 and b <= n) or p > n
        seen[tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))] = True
    assert seen.all()


def test_neighbours_share_the_overlap():
    starts = sorted(w.centre[2] - 8 for w in sliding_windows((1, 16, 45), (1, 16, 16), 0.5))
    assert starts[0] == 0
    assert starts[-1] == 45 - 16
    assert np.diff(starts).max() <= 8


def test_how_many_windows_look_at_a_box():
    windows = sliding_windows((1, 16, 32), (1, 16, 16), 0.5)  # starts 0, 8, 16 along w
    boxes = np.array(
        [[0, 0, 0, 1, 8, 8], [0, 0, 9, 1, 8, 15], [0, 0, 4, 1, 8, 12], [0, 0, 6, 1, 8, 12], [0, 0, 0, 1, 8, 32.0]]
    )
    assert looked_at(boxes, windows).tolist() == [1, 2, 1, 1, 1]
    assert looked_at(boxes[:0], windows).shape == (0,)


def test_the_middle_of_a_window_is_trusted_most():
    window = sliding_windows((1, 16, 16), (1, 16, 16), 0.5)[0]
    weights = trust(np.array([[0, 6, 6, 1, 10, 10], [0, 6, 10, 1, 10, 14], [0, 6, 12, 1, 10, 16.0]]), window)
    assert weights[0] == 1
    assert weights[0] > weights[1] > weights[2] > 0


@given(st.integers(0, 10**6), sizes, patches)
@settings(max_examples=60, deadline=None)
def test_training_patches_lie_inside_and_hold_a_finding(seed, shape, patch):
    patch = tuple(1 if n == 1 else max(4, p) for n, p in zip(shape, patch, strict=True))
    rng = np.random.default_rng(seed)
    low = np.array([rng.integers(0, n) for n in shape])
    high = np.array([rng.integers(a + 1, n + 1) for a, n in zip(low, shape, strict=True)])
    findings = Boxes(np.array([[*low, *high]], float), np.zeros(1, np.int64))
    centre = training_centre(findings, shape, patch, rng, 1.0)
    start = centre - np.array(patch) / 2
    assert (start == np.floor(start)).all()
    for a, n, p, s, e in zip(start, shape, patch, low, high, strict=True):
        assert a - min(0, (n - p) / 2) >= -1 and a + p <= max(n, (n + p) / 2) + 1  # noqa: PT018
        assert a < e and a + p > s  # noqa: PT018


def test_without_a_finding_a_patch_is_anywhere():
    none = Boxes(np.zeros((0, 6)), np.zeros(0, np.int64))
    rng = np.random.default_rng(0)
    centres = np.array([training_centre(none, (1, 64, 64), (1, 16, 16), rng, 1.0) for _ in range(200)])
    assert centres[:, 1:].min() <= 12
    assert centres[:, 1:].max() >= 52


def test_rare_classes_are_met_as_often_as_common_ones():
    boxes = np.array([[0, 2, 2, 1, 6, 6]] * 9 + [[0, 50, 50, 1, 54, 54]], float)
    findings = Boxes(boxes, np.array([0] * 9 + [1]))
    rng = np.random.default_rng(0)
    far = [training_centre(findings, (1, 64, 64), (1, 16, 16), rng, 1.0)[1] > 32 for _ in range(200)]
    assert 60 < sum(far) < 140


def test_axes_are_exchanged_only_where_that_is_allowed_and_exact():
    assert turnable([1, 2], (3.0, 1.0, 1.0), None) == [(1, 2)]
    assert turnable([0, 1, 2], (3.0, 1.0, 1.0), None) == [(1, 2)]
    assert turnable([2], (1.0, 1.0, 1.0), None) == []
    assert turnable([0, 1, 2], (1.0, 1.0, 1.0), (16, 16, 24)) == [(0, 1)]
    rng = np.random.default_rng(0)
    seen = {tuple(quarter_turn(rng, [(1, 2)]).ravel()) for _ in range(20)}
    assert seen == {tuple(np.eye(3).ravel()), tuple(np.eye(3)[[0, 2, 1]].ravel())}
    for _ in range(20):
        turned = quarter_turn(rng, [(0, 1), (0, 2), (1, 2)])
        assert turned @ turned.T == pytest.approx(np.eye(3))
