"""Removal of components: only what a rule names, and only rules that help."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label

from scanfoundry.finetune.config.postprocess import ClassRule
from scanfoundry.finetune.inference.postprocess import apply, choose
from scanfoundry.finetune.metrics.dice import dice
from scanfoundry.finetune.sample import HeldBackCase


def scene():
    truth = np.zeros((12, 14, 16), np.uint8)
    truth[2:7, 3:9, 3:10] = 1
    truth[8:11, 2:6, 2:6] = 2
    return truth


def test_only_the_largest_or_large_components_of_a_class_stay():
    labels = scene()
    labels[10, 12, 14] = labels[0, 0, 0:3] = 1
    labels[0, 12, 0] = 2
    largest = apply(labels, [ClassRule(largest=True), ClassRule()], 1.0)
    assert (largest == 1).sum() == (scene() == 1).sum()
    assert largest[0, 12, 0] == 2  # the other class has no rule
    large = apply(labels, [ClassRule(min_mm3=6.0), ClassRule()], 2.0)
    assert large[0, 0, 0] == 1  # 3 voxels of 2 mm^3
    assert large[10, 12, 14] == 0
    assert labels[10, 12, 14] == 1  # the input is as it was


def test_corners_touch():
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[0, 1, 1] = labels[0, 2, 2] = 1
    assert (apply(labels, [ClassRule(min_mm3=3.0)], 1.0) == labels).all()


@given(arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 2)), st.booleans(), st.floats(0, 20))
def test_it_removes_and_never_adds_and_does_nothing_twice(labels, largest, least):
    rules = [ClassRule(largest=largest, min_mm3=least), ClassRule()]
    once = apply(labels, rules, 1.0)
    assert ((once == labels) | (once == 0)).all()
    assert (once[labels == 2] == 2).all()
    assert (apply(once, rules, 1.0) == once).all()
    if largest:
        assert label(once == 1, np.ones((3, 3, 3)))[1] <= 1


def test_a_rule_is_chosen_where_it_helps_and_none_where_it_does_not():
    truth = scene()
    noisy = truth.copy()
    noisy[0:2, 11:14, 12:16] = 1  # a false component, of class 1 alone
    rules = choose([HeldBackCase(noisy, truth, 1.0)] * 3, 2)
    assert rules[0] != ClassRule()
    assert rules[1] == ClassRule()
    assert dice(apply(noisy, rules, 1.0), truth, 2) == [1.0, 1.0]
    two = scene()
    two[0:2, 11:14, 12:16] = 1  # both components are true
    assert choose([HeldBackCase(two, two, 1.0)], 2) == [ClassRule(), ClassRule()]


def test_a_class_that_no_held_back_case_has_gets_no_rule():
    noisy = scene()
    assert choose([HeldBackCase(noisy, np.zeros_like(noisy), 1.0)], 2) == [ClassRule(), ClassRule()]


def test_a_wrong_component_in_a_case_without_the_class_counts():
    truth, empty = scene(), np.zeros_like(scene())
    false = empty.copy()
    false[0, 0, 0] = 1
    assert choose([HeldBackCase(truth, truth, 1.0), HeldBackCase(false, empty, 1.0)], 1)[0].min_mm3 == pytest.approx(
        0.02 * 210
    )
