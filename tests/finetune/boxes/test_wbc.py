import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.finetune.boxes.wbc import Views, cluster
from scanfoundry.finetune.cases.boxes import Boxes


@st.composite
def views(draw, axes):
    """A few boxes in a small space, so that they meet; scores, weights and places with ties."""
    n = draw(st.integers(0, 12))
    numbers = st.integers
    low = np.array(draw(st.lists(st.lists(numbers(0, 6), min_size=axes, max_size=axes), min_size=n, max_size=n)), float)
    size = np.array(draw(st.lists(st.lists(numbers(1, 6), min_size=axes, max_size=axes), min_size=n, max_size=n)))

    def column(values):
        return np.array(draw(st.lists(values, min_size=n, max_size=n)))

    scores, labels = column(numbers(1, 4)) / 4, column(numbers(0, 1)).astype(np.int64)
    return Views(
        Boxes(np.concatenate([low.reshape(n, axes), (low + size).reshape(n, axes)], axis=1), labels, scores),
        column(numbers(0, 3)).astype(np.int64),
        column(numbers(1, 3)) / 3,
        column(numbers(1, 5)).astype(float),
    )


def naive(found, threshold):
    """Box by box in plain numbers; the seed of a cluster is the best free box in the order that `cluster` names."""

    def overlap(a, b):
        axes = len(a) // 2
        shared, one, other = 1.0, 1.0, 1.0
        for i in range(axes):
            shared *= max(0.0, min(a[axes + i], b[axes + i]) - max(a[i], b[i]))
            one *= a[axes + i] - a[i]
            other *= b[axes + i] - b[i]
        return shared / (one + other - shared)

    boxes = found.boxes
    parts = boxes.corners, boxes.scores, boxes.labels, found.view, found.weight, found.expected
    rows = [tuple(part[i] for part in parts) for i in range(len(boxes))]
    rows.sort(key=lambda r: (-r[1], r[2], r[3], r[5], r[4], tuple(r[0])))
    out = []
    while rows:
        seed = rows[0]
        inside = [r for r in rows if r[2] == seed[2] and overlap(seed[0], r[0]) > threshold]
        rows = [r for r in rows if not any(r is m for m in inside)]
        total = votes = expected = 0.0
        box = [0.0] * len(seed[0])
        for r in inside:
            w = overlap(seed[0], r[0]) * r[4]
            total += w
            votes += w * r[1]
            expected += r[5] / len(inside)
            box = [b + w * r[1] * x for b, x in zip(box, r[0], strict=True)]
        missing = max(0.0, expected - len({r[3] for r in inside}))
        out.append(([b / votes for b in box], votes / (total + missing * total / len(inside)), seed[2]))
    return out


@pytest.mark.parametrize("axes", [2, 3])
@given(data=st.data(), threshold=st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=60, deadline=None)
def test_as_a_double_loop_and_whatever_the_order(axes, data, threshold):
    given_views = data.draw(views(axes))
    found = cluster(given_views, threshold)
    expected = naive(given_views, threshold)
    assert len(found.scores) == len(expected)
    assert (np.diff(found.scores) <= 0).all()
    ours = sorted(
        (round(s, 9), int(k), tuple(np.round(b, 9)))
        for b, s, k in zip(found.corners, found.scores, found.labels, strict=True)
    )
    theirs = sorted((round(s, 9), int(k), tuple(np.round(b, 9))) for b, s, k in expected)
    for one, other in zip(ours, theirs, strict=True):
        assert one[1] == other[1]
        assert (one[0], *one[2]) == pytest.approx((other[0], *other[2]), abs=1e-8)
    order = np.array(data.draw(st.permutations(range(len(given_views.boxes)))), int)
    again = cluster(given_views.take(order), threshold)
    assert np.array_equal(found.corners, again.corners)
    assert np.array_equal(found.scores, again.scores)
    assert np.array_equal(found.labels, again.labels)


def test_a_finding_that_one_of_two_views_misses_counts_half():
    box = np.array([[0.0, 0, 4, 4]])
    boxes = Boxes(box, np.array([1]), np.array([0.8]))
    one = Views(boxes, np.array([0]), np.array([0.5]), np.array([2.0]))
    found = cluster(one, 0.3)
    assert found.scores == pytest.approx([0.4])
    assert found.corners.tolist() == box.tolist()
    assert found.labels.tolist() == [1]


def test_two_boxes_of_one_view_are_one_vote():
    boxes = Boxes(np.array([[0.0, 0, 4, 4], [0, 0, 4, 4]]), np.zeros(2, int), np.array([0.8, 0.8]))
    twice = Views(boxes, np.zeros(2, int), np.ones(2), np.full(2, 3.0))
    assert cluster(twice, 0.3).scores == pytest.approx([0.8 * 2 / (2 + 2)])


def test_nothing_found_stays_nothing():
    none = Views(Boxes(np.zeros((0, 6)), np.zeros(0, int), np.zeros(0)), *(np.zeros(0) for _ in range(3)))
    found = cluster(none, 0.3)
    assert found.corners.shape == (0, 6)
    assert len(found.scores) == len(found.labels) == 0
