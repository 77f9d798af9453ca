import numpy as np
import pytest
import torch

from scanforge.finetune.config import AugmentationConfig
from scanforge.finetune.sampling import Window, extract, random_matrix, still_window, vary_intensity


@pytest.mark.parametrize(("shape", "size"), [((5, 7, 9), (8, 8, 8)), ((9, 12, 10), (4, 6, 5)), ((1, 7, 6), (1, 8, 4))])
def test_still_window_is_padding_and_cropping(shape, size):
    image = torch.randn(2, *shape)
    patch = extract(image, still_window(shape, size), -3.0)
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
    still = still_window((6, 8, 10), (6, 8, 10))
    mirrored = extract(image, Window(still.centre, np.diag([1.0, -1.0, 1.0]), still.size), 0.0)
    assert torch.allclose(mirrored, image.flip(2), atol=1e-5)


def test_a_quarter_turn_in_the_slice():
    image = torch.randn(1, 1, 8, 8)
    still = still_window((1, 8, 8), (1, 8, 8))
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    turned = extract(image, Window(still.centre, turn, still.size), 0.0)
    assert torch.allclose(turned[0, 0], torch.rot90(image[0, 0], -1), atol=1e-5) or torch.allclose(
        turned[0, 0], torch.rot90(image[0, 0], 1), atol=1e-5
    )


def test_a_part_of_a_big_scan_equals_the_whole():
    image = torch.randn(1, 30, 40, 50)
    matrix = random_matrix(np.random.default_rng(2), AugmentationConfig(probability=1.0), (1, 1, 1), False, True)
    small, large = (
        Window(np.array([12.0, 20, 30]), matrix, (6, 6, 6)),
        Window(np.array([12.0, 20, 30]), matrix, (60, 60, 60)),
    )
    assert torch.allclose(extract(image, small, 0.5), extract(image, large, 0.5)[:, 27:33, 27:33, 27:33], atol=1e-4)


def test_points_go_there_and_back():
    rng = np.random.default_rng(5)
    config = AugmentationConfig(flip_axes=[1, 2], scale=0.3, probability=1.0)
    for _ in range(8):
        still = still_window((1, 40, 40), (1, 64, 64))
        window = Window(still.centre, random_matrix(rng, config, (1, 1, 1), True, False), still.size)
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
