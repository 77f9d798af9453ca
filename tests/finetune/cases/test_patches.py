import numpy as np
import pytest
import torch

from scanfoundry.datasets.augment.window import PatchWindow, extract, extract_labels, identity_patch
from scanfoundry.finetune.cases.augmentation import random_matrix, vary_intensity
from scanfoundry.finetune.config.study import AugmentationConfig


@pytest.mark.parametrize(("shape", "size"), [((5, 7, 9), (8, 8, 8)), ((9, 12, 10), (4, 6, 5)), ((1, 7, 6), (1, 8, 4))])
def test_still_window_is_padding_and_cropping(shape, size):
    image = torch.randn(2, *shape)
    patch = extract(image, identity_patch(shape, size), -3.0)
    expected = torch.full((2, *size), -3.0)
    into, outof = [], []
    for s, p in zip(shape, size, strict=True):
        first = (p - s) // 2  # of the scan, counted in the patch; negative where the scan is cut
        into.append(slice(max(0, first), max(0, first) + min(s, p)))
        outof.append(slice(max(0, -first), max(0, -first) + min(s, p)))
    expected[:, into[0], into[1], into[2]] = image[:, outof[0], outof[1], outof[2]]
    assert torch.allclose(patch, expected, atol=1e-4)


def test_a_mirrored_patch_is_the_flipped_patch():
    image = torch.randn(1, 6, 8, 10)
    still = identity_patch((6, 8, 10), (6, 8, 10))
    mirrored = extract(image, PatchWindow(still.centre, np.diag([1.0, -1.0, 1.0]), still.size), 0.0)
    assert torch.allclose(mirrored, image.flip(2), atol=1e-5)


def test_a_quarter_turn_in_the_slice():
    image = torch.randn(1, 1, 8, 8)
    still = identity_patch((1, 8, 8), (1, 8, 8))
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    turned = extract(image, PatchWindow(still.centre, turn, still.size), 0.0)
    assert torch.allclose(turned[0, 0], torch.rot90(image[0, 0], -1), atol=1e-5) or torch.allclose(
        turned[0, 0], torch.rot90(image[0, 0], 1), atol=1e-5
    )


def test_a_part_of_a_big_scan_equals_the_whole():
    image = torch.randn(1, 30, 40, 50)
    matrix = random_matrix(np.random.default_rng(2), AugmentationConfig(probability=1.0), (1, 1, 1), False, True)
    small, large = (
        PatchWindow(np.array([12.0, 20, 30]), matrix, (6, 6, 6)),
        PatchWindow(np.array([12.0, 20, 30]), matrix, (60, 60, 60)),
    )
    assert torch.allclose(extract(image, small, 0.5), extract(image, large, 0.5)[:, 27:33, 27:33, 27:33], atol=1e-4)


def test_points_go_there_and_back():
    rng = np.random.default_rng(5)
    config = AugmentationConfig(flip_axes=[1, 2], scale=0.3, probability=1.0)
    for _ in range(8):
        still = identity_patch((1, 40, 40), (1, 64, 64))
        window = PatchWindow(still.centre, random_matrix(rng, config, (1, 1, 1), True, False), still.size)
        points = rng.uniform(0, 40, (5, 3))
        assert window.to_scan(window.to_patch(points)) == pytest.approx(points)


def test_mirrors_only_where_the_anatomy_allows():
    rng = np.random.default_rng(0)
    config = AugmentationConfig(flip_axes=[2], probability=0.0)
    signs = np.array([np.diag(random_matrix(rng, config, (1, 1, 1), False, True)) for _ in range(30)])
    assert (signs[:, :2] == 1).all()
    assert set(signs[:, 2]) == {-1, 1}


def test_rotation_is_rigid_in_millimetres():
    spacing = np.diag([3.0, 1.0, 0.5])
    config = AugmentationConfig(scale=0.0, probability=1.0, rotation=40)
    matrix = random_matrix(np.random.default_rng(1), config, (3.0, 1.0, 0.5), False, True)
    rigid = spacing @ matrix @ np.linalg.inv(spacing)
    assert rigid @ rigid.T == pytest.approx(np.eye(3))


def test_intensities_vary_by_sample_and_repeat_with_the_seed():
    images = torch.randn(3, 1, 4, 5, 6)
    config = AugmentationConfig(probability=1.0)
    first, second = (vary_intensity(images, np.random.default_rng(7), config) for _ in range(2))
    assert torch.equal(first, second)
    assert (first - images).abs().amax((1, 2, 3, 4)).min() > 0.01
    off = AugmentationConfig(probability=0.0)
    assert torch.allclose(vary_intensity(images, np.random.default_rng(7), off), images, atol=1e-5)


def test_labels_of_a_still_patch_are_the_labels():
    labels = np.random.default_rng(0).integers(0, 5, (6, 9, 7)).astype(np.uint8)
    patch = extract_labels(labels, identity_patch((6, 9, 7), (8, 8, 8)))
    padded = np.pad(labels, ((1, 1), (0, 0), (0, 1)))
    assert np.array_equal(patch.numpy(), padded[:, 1:])  # 9 rows in 8: the first one is cut


def test_labels_of_a_zoomed_patch_have_smooth_borders_and_only_labels_that_are_there():
    grid = np.indices((24, 24, 24)) + 0.5 - 12
    ball = ((grid**2).sum(0) < 64).astype(np.uint8) * 7
    matrix = np.eye(3) / 2
    patch = extract_labels(ball, PatchWindow(np.full(3, 12.0), matrix, (40, 40, 40))).numpy()
    assert set(np.unique(patch)) == {0, 7}
    fine = np.indices((40, 40, 40)) / 2 + 0.25 - 10
    exact = (fine**2).sum(0) < 64
    nearest = ball[tuple(np.floor(fine + 12).astype(int))] > 0
    assert ((patch > 0) != exact).sum() < 0.75 * (nearest != exact).sum()


def test_outside_of_the_map_is_background_where_it_has_the_larger_share():
    labels = np.full((4, 4, 4), 3, np.uint8)
    shifted = PatchWindow(np.array([2.0, 2.0, 2.6]), np.eye(3), (4, 4, 4))  # the last column is 0.4 inside
    patch = extract_labels(labels, shifted)
    assert (patch[..., :3] == 3).all()
    assert (patch[..., 3] == 0).all()


def test_coarser_voxels_average_and_leave_a_flat_image_as_it_is():
    config = AugmentationConfig(probability=1.0, gamma=0, brightness=0, contrast=0, noise=0, coarser=2.5)
    images = torch.randn(4, 1, 12, 16, 20)
    coarse = vary_intensity(images, np.random.default_rng(0), config)
    assert ((coarse.var((1, 2, 3, 4)) / images.var((1, 2, 3, 4))) < 0.9).all()
    assert torch.allclose(coarse.mean((1, 2, 3, 4)), images.mean((1, 2, 3, 4)), atol=0.05)
    flat = torch.full((2, 1, 1, 9, 9), 1.5)
    assert torch.allclose(vary_intensity(flat, np.random.default_rng(0), config), flat)
