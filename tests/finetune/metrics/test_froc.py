import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.metrics.detection import average_precision, match
from scanfoundry.finetune.metrics.froc import (
    FALSE_POSITIVES,
    IOUS,
    average_precision_at,
    froc_curve,
    hit_bits,
    hits_at,
    sensitivity_at,
)

RATES = list(FALSE_POSITIVES.values())


def cases(seed, n=8, classes=2, boxes=6):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        m = int(rng.integers(0, boxes))
        hits = rng.integers(0, 2 ** len(IOUS), m)
        labels = rng.integers(0, classes, m)
        least = np.bincount(labels[hits > 0], minlength=classes)
        truths = least + rng.integers(0, 2, classes)
        scores = rng.integers(0, 5, m) / 5  # with ties
        record = {"scores": scores, "labels": labels, "hits": hits, "truths": truths}
        found.append({name: part.tolist() for name, part in record.items()})
    return found


def pooled(records, iou, label):
    rows = [
        (s, bool(h >> IOUS.index(iou) & 1))
        for r in records
        for s, k, h in zip(r["scores"], r["labels"], r["hits"], strict=True)
        if k == label
    ]
    return rows, sum(r["truths"][label] for r in records)


def naive_sensitivity(records, iou, label, allowed):
    """Over every threshold: keep what scores at least so, count; the best sensitivity among those allowed."""
    rows, n_truth = pooled(records, iou, label)
    if not n_truth:
        return float("nan")
    best = 0.0
    for threshold in {s for s, _ in rows}:
        kept = [hit for s, hit in rows if s >= threshold]
        if kept.count(False) / len(records) <= allowed:
            best = max(best, kept.count(True) / n_truth)
    return best


def mean(values):
    kept = [v for v in values if not math.isnan(v)]
    return sum(kept) / len(kept) if kept else float("nan")


@pytest.mark.parametrize("seed", range(10))
def test_froc_as_a_loop_over_thresholds(seed):
    records = cases(seed)
    for iou in (0.1, 0.5):
        for allowed in RATES:
            expected = mean([naive_sensitivity(records, iou, k, allowed) for k in (0, 1)])
            assert sensitivity_at(iou, [0, 1], [allowed])(records) == pytest.approx(expected, nan_ok=True)
        every = mean([mean([naive_sensitivity(records, iou, k, fp) for fp in RATES]) for k in (0, 1)])
        assert sensitivity_at(iou, [0, 1], RATES)(records) == pytest.approx(every, nan_ok=True)


@pytest.mark.parametrize("seed", range(10))
def test_average_precision_is_that_of_the_pooled_boxes_and_its_means(seed):
    records = cases(seed)
    each = {}
    for iou in IOUS:
        for label in (0, 1):
            rows, n_truth = pooled(records, iou, label)
            scores, hits = np.array([s for s, _ in rows]), np.array([h for _, h in rows], bool)
            each[iou, label] = average_precision(scores, hits, n_truth)
            assert average_precision_at([iou], [label])(records) == pytest.approx(each[iou, label], nan_ok=True)
    whole = mean([mean([each[iou, k] for iou in IOUS]) for k in (0, 1)])
    assert average_precision_at(IOUS, [0, 1])(records) == pytest.approx(whole, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_a_weight_is_a_case_that_occurs_so_often(seed, n):
    records = cases(seed, n)
    times = np.random.default_rng(seed).integers(0, 3, (4, n))
    times[0, 0] = 1
    times = times[times.sum(1) > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for statistic in (average_precision_at([0.1, 0.5], [0, 1]), sensitivity_at(0.1, [0, 1], RATES)):
            repeated = [statistic([records[i] for i in np.repeat(np.arange(n), row)]) for row in times]
            assert statistic.prepare(records)(times.astype(float)) == pytest.approx(np.array(repeated), nan_ok=True)


def test_scans_without_a_finding_count_as_images_and_their_boxes_as_false():
    hit = {"scores": [0.5], "labels": [0], "hits": [1], "truths": [1]}
    false = {"scores": [0.9], "labels": [0], "hits": [0], "truths": [0]}
    quiet = {"scores": [], "labels": [], "hits": [], "truths": [0]}
    assert sensitivity_at(0.1, [0], [0.5])([hit, false]) == 1.0
    assert sensitivity_at(0.1, [0], [0.25])([hit, false]) == 0.0
    assert sensitivity_at(0.1, [0], [0.25])([hit, false, quiet, quiet]) == 1.0
    assert average_precision_at([0.1], [0])([hit, false]) == 0.5


def test_ties_enter_together_in_any_order():
    hit = {"scores": [0.5], "labels": [0], "hits": [1], "truths": [1]}
    false = {"scores": [0.5], "labels": [0], "hits": [0], "truths": [0]}
    for records in ([hit, false], [false, hit]):
        assert sensitivity_at(0.1, [0], [0.125])(records) == 0.0
        assert average_precision_at([0.1], [0])(records) == 0.5


def test_degenerate_cases():
    nothing = {"scores": [], "labels": [], "hits": [], "truths": [0, 0]}
    missed = {"scores": [], "labels": [], "hits": [], "truths": [2, 0]}
    false = {"scores": [0.3], "labels": [1], "hits": [0], "truths": [0, 0]}
    for statistic in (average_precision_at(IOUS, [0, 1]), sensitivity_at(0.5, [0, 1], RATES)):
        assert math.isnan(statistic([nothing]))
        assert math.isnan(statistic([nothing, false]))
        assert statistic([missed, nothing, false]) == 0.0  # the mean over the one class that has a truth
        assert math.isnan(statistic([]))


def test_hit_bits_say_which_box_hits_at_which_iou():
    truth = np.array([[0, 0, 0, 1, 10, 10], [0, 20, 20, 1, 30, 30]], float)
    found = np.array([[0, 0, 0, 1, 10, 3], [0, 20, 20, 1, 30, 29], [0, 0, 0, 1, 10, 10]], float)
    truth, found = Boxes(truth, np.zeros(2, int)), Boxes(found, np.zeros(3, int), np.array([0.9, 0.8, 0.1]))
    bits = hit_bits(found, truth)
    record = {"hits": bits}
    for iou in IOUS:
        assert hits_at(record, iou).tolist() == match(found, truth, iou)
    # At a low IoU the first box takes the true one away from the last.
    assert hits_at(record, 0.1).tolist() == [True, True, False]
    assert hits_at(record, 0.5).tolist() == [False, True, True]
    none = np.zeros((0, 6)), np.zeros(0, int)
    assert hit_bits(Boxes(*none, np.zeros(0)), truth) == []
    assert hit_bits(found, Boxes(*none)) == [0, 0, 0]


def test_the_curve_holds_the_sensitivities():
    records = cases(3)
    wrong, found = froc_curve(records, 0.1, 0)
    assert (wrong[0], found[0]) == (0, 0)
    assert (np.diff(wrong) >= 0).all()
    for allowed in RATES:
        assert found[wrong <= allowed][-1] == pytest.approx(sensitivity_at(0.1, [0], [allowed])(records))
