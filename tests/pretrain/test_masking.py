"""Masks as a pure function of each sample's seed, and the one order in which blocks are counted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.pretrain.masking import block_mask, enlarge, masked_count, patchify, unpatchify, visible_indices

GRIDS = st.tuples(*(st.integers(1, 5) for _ in range(3))).filter(lambda g: g[0] * g[1] * g[2] > 1)


@settings(max_examples=25, deadline=None)
@given(GRIDS, st.floats(0.05, 0.95), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_every_sample_hides_the_same_number_and_depends_on_its_own_seed(grid, ratio, seeds):
    before = torch.get_rng_state()
    mask = block_mask(torch.tensor(seeds), grid, ratio)
    blocks = grid[0] * grid[1] * grid[2]
    assert mask.shape == (len(seeds), 1, *grid)
    assert mask.flatten(1).sum(dim=1).tolist() == [masked_count(blocks, ratio)] * len(seeds)
    for row, seed in zip(mask, seeds, strict=True):  # as another rank, or another batch size, would see it
        assert torch.equal(block_mask(torch.tensor([seed]), grid, ratio)[0], row)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("blocks", "ratio", "hidden"), [(196, 0.75, 147), (49, 0.6, 29), (2, 0.99, 1), (5, 0.01, 1), (10, 0.7, 7)]
)
def test_counts_are_the_papers(blocks, ratio, hidden):
    assert masked_count(blocks, ratio) == hidden


def test_a_single_block_cannot_be_masked():
    with pytest.raises(ValueError, match="at least two blocks"):
        block_mask(torch.tensor([1]), (1, 1, 1), 0.5)


def test_masks_differ_between_seeds_that_share_32_bits_and_hide_each_block_equally_often():
    low, high = block_mask(torch.tensor([5, 5 + 2**32]), (4, 4, 4), 0.5)
    assert not torch.equal(low, high)
    share = block_mask(torch.arange(2000), (2, 3, 4), 0.75).float().mean(dim=0)
    assert (share - 0.75).abs().max() < 0.05


def test_visible_indices_are_those_not_hidden():
    mask = block_mask(torch.arange(6), (2, 3, 5), 0.6)
    for flat, index in zip(mask.flatten(1), visible_indices(mask), strict=True):
        assert index.tolist() == [i for i, hidden in enumerate(flat.tolist()) if not hidden]


@pytest.mark.parametrize(("shape", "patch"), [((4, 6, 10), (2, 3, 5)), ((1, 8, 12), (1, 4, 2))])
def test_patches_masks_and_voxels_agree_on_a_non_cubic_grid(shape, patch):
    """By loops: patch l of patchify, cell l of the flat mask and its enlarged voxels are the same place."""
    grid = tuple(n // p for n, p in zip(shape, patch, strict=True))
    x = torch.randn(2, 3, *shape)
    mask = block_mask(torch.tensor([3, 4]), grid, 0.5)
    patches, voxels = patchify(x, patch), enlarge(mask, patch)
    assert voxels.shape == (2, 1, *shape)
    cells = [(i, j, k) for i in range(grid[0]) for j in range(grid[1]) for k in range(grid[2])]
    for number, cell in enumerate(cells):
        box = tuple(slice(c * p, (c + 1) * p) for c, p in zip(cell, patch, strict=True))
        expected = x[(slice(None), slice(None), *box)].flatten(2).transpose(1, 2)  # (B, V, C)
        assert torch.equal(patches[:, number], expected)
        hidden = mask.flatten(1)[:, number]
        assert torch.equal(voxels[(slice(None), 0, *box)].flatten(1), hidden[:, None].expand(-1, expected.shape[1]))
    assert torch.equal(unpatchify(patches, grid, patch), x)
