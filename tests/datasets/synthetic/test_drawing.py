"""Synthetic scans: a function of the seed, a label map of many shapes, appearances that follow it voxel by voxel."""

import numpy as np
import pytest
from pydantic import ValidationError

from scanfoundry.datasets.synthetic import shapes
from scanfoundry.datasets.synthetic.config import MAX_SHAPES, SyntheticConfig
from scanfoundry.datasets.synthetic.draw import draw_scan
from scanfoundry.datasets.synthetic.kinds import KINDS
from scanfoundry.datasets.synthetic.noise import smooth_noise
from scanfoundry.datasets.synthetic.shapes import BODY

VOLUME, IMAGE = (12, 24, 20), (1, 40, 32)
PLAIN = SyntheticConfig(
    merged=0, contrast=(1.0, 1.0), texture=(0, 0), grain=(0, 0), bias=(0, 0), blur=(0, 0), thickness=(1, 1),
    noise=(0, 0), gamma=(1, 1),
)  # fmt: skip


@pytest.mark.parametrize("shape", [VOLUME, IMAGE])
def test_a_scan_is_a_function_of_its_seed(shape):
    one, again, other = (draw_scan(seed, shape, SyntheticConfig()) for seed in (3, 3, 4))
    assert np.array_equal(one.labels, again.labels)
    assert all(map(np.array_equal, one.appearances, again.appearances))
    assert not np.array_equal(one.labels, other.labels)
    assert not np.array_equal(one.appearances[0], other.appearances[0])
    assert not np.array_equal(*one.appearances)
    (single,) = draw_scan(3, shape, SyntheticConfig(), appearances=1).appearances
    assert np.array_equal(single, one.appearances[0])  # how many are drawn changes none of them
    assert (one.labels.shape, one.labels.dtype) == (shape, np.uint8)
    assert all((each.shape, each.dtype) == (shape, np.int16) for each in one.appearances)


@pytest.mark.parametrize("shape", [VOLUME, IMAGE])
def test_both_appearances_follow_the_label_map_voxel_by_voxel(shape):
    """Without the faults of an image each label has one grey value in each appearance, and others in the other one."""
    for seed in range(5):
        scan = draw_scan(seed, shape, PLAIN)
        present = np.unique(scan.labels)
        greys = [[np.unique(image[scan.labels == label]) for label in present] for image in scan.appearances]
        assert all(len(values) == 1 for image in greys for values in image)
        one, other = (np.concatenate(image) for image in greys)
        assert len(np.unique(one)) > 0.9 * len(present)
        assert not np.array_equal(one, other)


def test_merged_labels_look_alike_in_one_appearance_and_not_in_the_other():
    config = PLAIN.model_copy(update={"merged": 0.5})
    apart = merged = 0
    for seed in range(10):
        scan = draw_scan(seed, IMAGE, config)
        one, other = (
            np.array([image[scan.labels == label][0] for label in np.unique(scan.labels)]) for image in scan.appearances
        )
        same = (one[:, None] == one) & ~np.eye(len(one), dtype=bool)
        merged += same.sum()
        apart += (same & (other[:, None] != other)).sum()
    assert merged > 20
    assert apart > merged / 2


@pytest.mark.parametrize("shape", [VOLUME, IMAGE])
def test_label_maps_have_background_shapes_and_mostly_a_body(shape):
    drawn = [draw_scan(seed, shape, SyntheticConfig(), 0).labels for seed in range(40)]
    bodies = sum((labels == BODY).any() for labels in drawn)
    assert 12 <= bodies <= 36
    counts = [len(np.unique(labels)) for labels in drawn]
    assert np.median(counts) > 6
    assert max(counts) > 15
    assert max(labels.max() for labels in drawn) < 2 + 2 * MAX_SHAPES
    whole = [draw_scan(seed, shape, SyntheticConfig(body=1), 0).labels for seed in range(10)]
    assert all((labels == 0).any() for labels in whole)  # air
    assert not any((draw_scan(seed, shape, SyntheticConfig(body=0), 0).labels == BODY).any() for seed in range(10))


def test_as_many_shapes_as_there_may_be_fit_into_the_labels():
    many = SyntheticConfig(shapes=(MAX_SHAPES, MAX_SHAPES), radius=(0.05, 0.1))
    assert draw_scan(0, IMAGE, many, 0).labels.max() > MAX_SHAPES / 2


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("shape", [VOLUME, IMAGE])
def test_no_shape_is_cut_off_by_the_box_that_it_is_computed_in(kind, shape, monkeypatch):
    monkeypatch.setattr(shapes, "KINDS", KINDS[kind : kind + 1])
    fast = [draw_scan(seed, shape, SyntheticConfig(), 0).labels for seed in range(12)]
    monkeypatch.setattr(shapes.Space, "box", lambda self, centre, radius: (slice(None),) * 3)
    for seed, labels in enumerate(fast):
        assert np.array_equal(draw_scan(seed, shape, SyntheticConfig(), 0).labels, labels)
    assert max(labels.max() for labels in fast) > BODY


@pytest.mark.parametrize("cells", [(1, 2, 3), (6, 9, 12)])
def test_smooth_noise_is_smooth_and_of_unit_variance(cells):
    fields = np.stack([smooth_noise(np.random.default_rng(n), (24, 36, 48), cells) for n in range(60)])
    assert fields.dtype == np.float32
    assert abs(fields.mean()) < 0.1
    assert fields.var() == pytest.approx(1, rel=0.12)
    for axis, length in enumerate((24, 36, 48), start=1):
        steps = np.diff(fields, axis=axis).std() * length / cells[axis - 1]
        assert 0.5 < steps < 2.5  # over a cell it changes by about its deviation
    assert (smooth_noise(np.random.default_rng(0), (1, 8, 8), (4, 2, 2)).shape) == (1, 8, 8)


@pytest.mark.parametrize("shape", [VOLUME, IMAGE])
@pytest.mark.parametrize(
    "fault",
    [
        {"texture": (0.1, 0.1)}, {"grain": (0.1, 0.1)}, {"bias": (0.3, 0.3)}, {"blur": (1, 1)}, {"thickness": (3, 3)},
        {"noise": (0.1, 0.1), "rician": 0}, {"noise": (0.1, 0.1), "rician": 1}, {"gamma": (2, 2)},
        {"contrast": (0.4, 0.4)},
    ],
)  # fmt: skip
def test_every_fault_changes_the_appearance_and_not_the_labels(shape, fault):
    plain, changed = (draw_scan(7, shape, PLAIN.model_copy(update=update)) for update in ({}, fault))
    assert np.array_equal(plain.labels, changed.labels)
    for one, other in zip(plain.appearances, changed.appearances, strict=True):
        assert not np.array_equal(one, other)
    if fault.get("rician") == 1:
        assert min(image.min() for image in changed.appearances) >= 0


def test_thick_slices_keep_a_slope_and_blur_keeps_the_mean():
    from scanfoundry.datasets.synthetic.appearance import _blurred, _thick

    slope = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None], (20, 3, 4)).copy()
    thick = _thick(slope, 0, 4)
    assert np.allclose(thick[2:-2], slope[2:-2])
    assert thick[0, 0, 0] == pytest.approx(1.5)  # the first slice's mean
    point = np.zeros((1, 15, 15), np.float32)
    point[0, 7, 7] = 1
    blurred = _blurred(_blurred(point, 1, 1.1), 2, 1.1)
    assert blurred.sum() == pytest.approx(1, rel=1e-5)
    assert blurred[0, 7, 7] < 0.2
    assert np.array_equal(_blurred(point, 0, 1.0), point)


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"shapes": (0, 3)}, {"shapes": (9, 3)}, {"shapes": (3, 101)}, {"radius": (0, 0.1)}, {"body": 1.5},
                  {"gamma": (0, 1)}, {"scans": 0}, {"colour": 1}):  # fmt: skip
        with pytest.raises(ValidationError):
            SyntheticConfig(**wrong)
