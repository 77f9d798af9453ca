import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scanfoundry.datasets.augment.window import PatchWindow, extract, extract_labels
from scanfoundry.finetune.cases.augmentation import random_warp
from scanfoundry.finetune.config.study import AugmentationConfig, FinetuneConfig

ALWAYS = AugmentationConfig(probability=1.0, elastic=0.39)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(*[st.integers(4, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 5)] * 3),
)
def test_never_folds(seed, size, spacing):
    warp = random_warp(np.random.default_rng(seed), ALWAYS, spacing, size)
    assert warp.shape == (*size, 3)
    places = np.stack(np.indices(size), -1) + warp.numpy()
    steps = [np.diff(places, axis=axis)[: size[0] - 1, : size[1] - 1, : size[2] - 1] for axis in range(3)]
    assert (np.linalg.det(np.stack(steps, -1)) > 0).all()


def test_reaches_in_millimetres_and_is_smooth():
    spacing = (4.0, 1.0, 1.0)
    warps = [random_warp(np.random.default_rng(seed), ALWAYS, spacing, (12, 48, 48)).numpy() for seed in range(8)]
    reach = np.abs(warps).max((0, 1, 2, 3)) * spacing
    assert (reach > 2).all()
    assert (reach < 0.39 * 0.5 * 48).all()
    assert np.abs(np.diff(warps[0], n=2, axis=1)).max() < 0.5  # voxels


def test_a_slice_is_deformed_within_itself():
    warp = random_warp(np.random.default_rng(0), ALWAYS, (1.0, 1.0, 1.0), (1, 64, 64))
    assert (warp[..., 0] == 0).all()
    assert warp[..., 1:].abs().max() > 1


def test_image_and_labels_are_deformed_alike():
    labels = np.zeros((48, 48, 48), np.uint8)
    labels[16:32, 12:36, 18:30] = 2
    warp = random_warp(np.random.default_rng(3), ALWAYS, (1.0, 1.0, 1.0), labels.shape)
    window = PatchWindow(np.full(3, 24.0), np.eye(3), labels.shape, warp)
    image = extract(torch.from_numpy(labels)[None].float(), window, 0.0)[0]
    found = extract_labels(labels, window)
    clear = (image - 1).abs() > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal((found == 2)[clear], (image > 1)[clear])
    assert (found.numpy() != labels).sum() > 100


def test_a_warped_part_of_a_big_scan_is_read_as_from_the_whole():
    image = torch.randn(1, 40, 40, 40)
    warp = torch.full((6, 6, 6, 3), 5.0)  # all six voxels come from 5 further on
    moved = extract(image, PatchWindow(np.full(3, 12.0), np.eye(3), (6, 6, 6), warp), 0.0)
    assert torch.allclose(moved, image[:, 14:20, 14:20, 14:20], atol=1e-5)


def test_off_by_default_and_a_function_of_the_generator():
    assert random_warp(np.random.default_rng(0), AugmentationConfig(probability=1.0), (1, 1, 1), (8, 8, 8)) is None
    never = AugmentationConfig(probability=0.0, elastic=0.2)
    assert random_warp(np.random.default_rng(0), never, (1, 1, 1), (8, 8, 8)) is None
    twice = [random_warp(np.random.default_rng(9), ALWAYS, (1, 1, 1), (8, 9, 10)) for _ in range(2)]
    assert torch.equal(*twice)


def test_boxes_are_not_deformed():
    with pytest.raises(ValidationError, match="a deformed box is no box"):
        FinetuneConfig.model_validate(
            {
                "run_dir": "x",
                "task": {"name": "detection"},
                "data": {"images": "x"},
                "backbone": {"name": "stunet"},
                "augmentation": {"elastic": 0.1},
            }
        )
