import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.augment.window import PatchWindow, boxes_at_scan, boxes_in_patch, extract, identity_patch
from scanfoundry.finetune.boxes.geometry import centres, iou, mirrored, sides, volumes
from scanfoundry.finetune.boxes.windows import quarter_turn
from scanfoundry.finetune.cases.augmentation import random_matrix
from scanfoundry.finetune.config.study import AugmentationConfig


def boxes(rng, n, axes, reach=10):
    low = rng.integers(0, reach, (n, axes))
    return np.concatenate([low, low + rng.integers(1, 8, (n, axes))], axis=1).astype(float)


@pytest.mark.parametrize("axes", [2, 3])
def test_iou_as_counted_on_a_grid_and_as_monai_and_torchvision(axes):
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
    if axes == 2:
        from torchvision.ops import box_iou as torchvision_iou

        assert iou(first, second) == pytest.approx(
            torchvision_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
        )


@given(st.integers(0, 10**6), st.integers(2, 3))
@settings(max_examples=50, deadline=None)
def test_measures_of_boxes(seed, axes):
    some = boxes(np.random.default_rng(seed), 4, axes)
    overlap = iou(some, some)
    assert np.diag(overlap) == pytest.approx(np.ones(4))
    assert overlap == pytest.approx(overlap.T)
    assert overlap.min() >= 0
    assert volumes(some) == pytest.approx(sides(some).prod(1))
    assert centres(some) == pytest.approx(some[:, :axes] + sides(some) / 2)
    shape = (20,) * axes
    flipped = mirrored(some, (0, axes - 1), shape)
    assert iou(flipped, flipped) == pytest.approx(overlap)
    assert np.array_equal(mirrored(flipped, (axes - 1, 0), shape), some)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_boxes_follow_the_image_through_mirrors_and_quarter_turns_exactly(seed):
    rng = np.random.default_rng(seed)
    low, size = rng.integers(0, 8, 3), rng.integers(2, 6, 3)
    image = torch.zeros(1, 12, 14, 16)
    high = np.minimum(low + size, (12, 14, 16))
    image[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1.0
    config = AugmentationConfig(flip_axes=[0, 1, 2], probability=0.0)
    matrix = random_matrix(rng, config, (1, 1, 1), False, False) @ quarter_turn(rng, [(0, 1), (0, 2), (1, 2)])
    window = PatchWindow(identity_patch((12, 14, 16), (24, 24, 24)).centre, matrix, (24, 24, 24))
    patch = extract(image, window, 0.0)[0].numpy()
    assert set(np.unique(patch.round(4))) == {0.0, 1.0}  # nothing was interpolated
    (box,), kept = boxes_in_patch(np.array([[*low, *high]], float), window)
    lit = np.argwhere(patch > 0.5)
    assert lit.min(0).tolist() == box[:3].tolist()
    assert (lit.max(0) + 1).tolist() == box[3:].tolist()
    assert kept.tolist() == [True]
    assert boxes_at_scan(box[None], window) == pytest.approx(np.array([[*low, *high]]))


def test_a_zoomed_box_lies_on_the_zoomed_image():
    rng = np.random.default_rng(5)
    config = AugmentationConfig(flip_axes=[1, 2], scale=0.3, probability=1.0)
    image = torch.zeros(1, 1, 40, 40)
    image[0, 0, 10:20, 22:34] = 1.0
    for _ in range(8):
        still = identity_patch((1, 40, 40), (1, 64, 64))
        window = PatchWindow(still.centre, random_matrix(rng, config, (1, 1, 1), True, False), still.size)
        box = boxes_in_patch(np.array([[0.0, 10, 22, 1, 20, 34]]), window)[0][0]
        lit = np.argwhere(extract(image, window, 0.0)[0, 0].numpy() > 0.5)
        assert lit.min(0) == pytest.approx(box[[1, 2]], abs=1.01)
        assert lit.max(0) + 1 == pytest.approx(box[[4, 5]], abs=1.01)


def test_a_box_that_left_the_patch_is_dropped():
    window = PatchWindow(np.array([0.5, 30.0, 30.0]), np.eye(3), (1, 20, 20))
    some = np.array([[0, 0, 0, 1, 10, 10], [0, 25, 25, 1, 35, 35], [0, 35, 15, 1, 45, 30.0]])
    inside, kept = boxes_in_patch(some, window)
    assert inside.tolist() == [[0, 5, 5, 1, 15, 15], [0, 15, 0, 1, 20, 10]]
    assert kept.tolist() == [False, True, True]
    assert boxes_in_patch(np.zeros((0, 6)), window)[0].shape == (0, 6)
