"""Mixup and CutMix of a batch against a restatement voxel by voxel, in 2D and 3D."""

import itertools

import numpy as np
import pytest
import torch

from scanfoundry.finetune.cases.mixing import mixed, random_box
from scanfoundry.finetune.config.study import AugmentationConfig

SHAPES = [(5, 2, 1, 7, 9), (4, 1, 6, 5, 8)]


def batch(shape):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64), torch.arange(shape[0]) % 3


def drawn(seed, images, labels, **options):
    return mixed(images, labels, 3, np.random.default_rng(seed), AugmentationConfig(**options))


@pytest.mark.parametrize("shape", SHAPES)
def test_mixup_as_a_naive_loop(shape):
    images, labels = batch(shape)
    for seed in range(5):
        found, shares = drawn(seed, images, labels, mixup=0.8)
        rng = np.random.default_rng(seed)
        partners, share = rng.permutation(shape[0]), rng.beta(0.8, 0.8)
        for place, partner in enumerate(partners):
            expected = [share * (labels[place] == k) + (1 - share) * (labels[partner] == k) for k in range(3)]
            assert shares[place].tolist() == pytest.approx([float(each) for each in expected], abs=1e-6)
            torch.testing.assert_close(found[place], share * images[place] + (1 - share) * images[partner])


@pytest.mark.parametrize("shape", SHAPES)
def test_cutmix_pastes_one_box_and_its_share_is_that_of_the_voxels(shape):
    images, labels = batch(shape)
    for seed in range(20):
        found, shares = drawn(seed, images, labels, cutmix=1.0)
        partners = np.random.default_rng(seed).permutation(shape[0])
        pasted = np.zeros(shape[2:], bool)
        other = next((i for i, p in enumerate(partners) if i != p), None)
        for d, h, w in np.ndindex(*shape[2:]):
            pasted[d, h, w] = other is not None and bool((found[other, :, d, h, w] != images[other, :, d, h, w]).any())
        for place, partner in enumerate(partners):
            for d, h, w in np.ndindex(*shape[2:]):
                source = images[partner if pasted[d, h, w] else place]
                assert torch.equal(found[place, :, d, h, w], source[:, d, h, w])
            kept = 1 - pasted.mean()
            expected = [kept * (labels[place] == k) + (1 - kept) * (labels[partner] == k) for k in range(3)]
            assert shares[place].tolist() == pytest.approx([float(each) for each in expected], abs=1e-6)
        if pasted.any():  # one box: its corners span it
            corners = [np.flatnonzero(pasted.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
            assert pasted.sum() == np.prod([each[-1] - each[0] + 1 for each in corners])


def test_boxes_have_their_share_and_a_slice_is_cut_in_its_plane():
    rng = np.random.default_rng(0)
    for shape, share in itertools.product([(64, 64, 64), (1, 64, 64)], [0.3, 0.7]):
        sizes = [[s.stop - s.start for s in random_box(shape, share, rng)] for _ in range(200)]
        wanted = round((1 - share) ** (1 / sum(n > 1 for n in shape)) * 64)
        largest = np.max(sizes, 0)
        assert all(abs(size - (wanted if n > 1 else 1)) <= 1 for size, n in zip(largest, shape, strict=True))
        assert np.min(sizes, 0)[1] >= wanted // 2 - 1  # the middle is inside, half of it at least


def test_both_are_drawn_and_the_same_generator_draws_the_same():
    images, labels = batch(SHAPES[1])
    kinds = set()
    for seed in range(20):
        first, again = (drawn(seed, images, labels, mixup=0.8, cutmix=1.0) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        originals = {float(value) for value in images.flatten()}
        kinds.add(all(float(value) in originals for value in first[0].flatten()))
    assert kinds == {True, False}
