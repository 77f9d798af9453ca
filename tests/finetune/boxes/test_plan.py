import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.boxes.plan import Measured, plan_detection
from scanfoundry.finetune.cases.boxes import Boxes

STRIDES = [(2**i, 2**i, 2**i) for i in range(6)]


def case(side, shape=(200, 200, 200), at_spacing=(200, 200, 200), fitted=(64, 64, 64), n=4):
    boxes = np.array([[10.0, 10, 10, 10 + side, 10 + side, 10 + side]] * n).reshape(-1, 6)
    return Measured(Boxes(boxes, np.zeros(n, np.int64)), shape, at_spacing, fitted)


def decided(*cases, wanted=None):
    return plan_detection(cases, (64, 64, 64), STRIDES, wanted)[0]


def test_small_findings_in_large_scans_are_seen_in_windows():
    plan = decided(case(12))
    assert not plan.whole_scan
    assert "3.8 voxels" in plan.reason
    assert plan.boxes == 4
    assert 0.4 < plan.anchor_iou <= 1


def test_findings_that_stay_large_enough_are_seen_in_the_whole_scan():
    assert decided(case(40)).whole_scan


def test_scans_that_fit_are_seen_whole_even_if_the_findings_are_small():
    assert decided(case(5, (60, 60, 60), (60, 60, 60), (64, 64, 64))).whole_scan


def test_scans_much_larger_than_the_patch_are_seen_in_windows():
    plan = decided(case(60, (300, 300, 300), (300, 300, 300), (64, 64, 64)))
    assert not plan.whole_scan
    assert "4.7 times the patch" in plan.reason


def test_findings_larger_than_a_window_need_the_whole_scan():
    assert decided(case(100, (300, 300, 300), (300, 300, 300), (64, 64, 64))).whole_scan


@pytest.mark.parametrize("wanted", [True, False])
def test_the_user_decides(wanted):
    assert decided(case(12), wanted=wanted).whole_scan == wanted
    assert decided(case(40), wanted=wanted).whole_scan == wanted


def test_anchors_are_planned_at_the_grid_that_the_network_sees():
    whole = np.array(plan_detection([case(32)], (64, 64, 64), STRIDES, True)[1])
    windows = np.array(plan_detection([case(32)], (64, 64, 64), STRIDES, False)[1])
    assert abs(whole - 32 * 64 / 200).min() < 1
    assert abs(windows - 32).min() < 1


def test_cases_without_boxes_are_planned_beside_others_but_not_alone():
    assert decided(case(12), case(12, n=0)).boxes == 4
    with pytest.raises(UserError, match="none of the training cases has a box"):
        decided(case(12, n=0))


def test_images_of_many_findings_show_the_loss_many_anchors():
    assert decided(case(40, n=1)).sampled == 32
    assert decided(case(40, n=10)).sampled == 240
    assert decided(case(40, n=10), case(40, n=0)).sampled == 240  # images without any do not count
    windows = decided(case(12, n=100))  # 64 of 200 along each axis: 3.3 of them in a patch
    assert not windows.whole_scan
    assert windows.sampled == round(24 * 100 * 0.32**3)
