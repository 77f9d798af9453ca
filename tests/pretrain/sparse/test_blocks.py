"""Packing and halos against plain loops, for any grid, block, halo and active set."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.pretrain.sparse.blocks import ActiveBlocks

small = st.integers(1, 3)
triples = st.tuples(small, small, small)
widths = st.tuples(*[st.integers(0, 2)] * 3)


@st.composite
def cases(draw):
    """Visible blocks of 1 to 3 samples, uneven numbers of them, and the size of a block."""
    grid, size, batch = draw(triples), draw(triples), draw(small)
    cells = batch * grid[0] * grid[1] * grid[2]
    flags = draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    visible = torch.tensor(flags).view(batch, 1, *grid)
    visible[0, 0, 0, 0, 0] = True
    return visible, size


def dense_map(visible, size, channels=2):
    shape = [n * b for n, b in zip(visible.shape[2:], size, strict=True)]
    return torch.randn(visible.shape[0], channels, *shape, dtype=torch.float64)


def voxelwise(visible, size):
    """By loops: (B, D, H, W) bool, True on visible voxels."""
    b, _, d, h, w = visible.shape
    out = torch.zeros(b, d * size[0], h * size[1], w * size[2], dtype=torch.bool)
    for n, *place in visible[:, 0].nonzero().tolist():
        out[(n, *(slice(p * s, (p + 1) * s) for p, s in zip(place, size, strict=True)))] = True
    return out


@given(cases())
@settings(max_examples=60, deadline=None)
def test_packing_keeps_visible_blocks_in_order_and_unpacking_fills_the_rest(case):
    visible, size = case
    blocks, x = ActiveBlocks(visible), dense_map(visible, size)
    packed = blocks.pack(x)
    for row, (n, *place) in zip(packed, visible[:, 0].nonzero().tolist(), strict=True):
        box = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, size, strict=True))
        assert torch.equal(row.movedim(-1, 0), x[(n, slice(None), *box)])
    fill = torch.tensor([3.0, -4.0], dtype=torch.float64)
    expected = torch.where(voxelwise(visible, size)[:, None], x, fill.view(1, 2, 1, 1, 1))
    assert torch.equal(blocks.unpack(packed, fill), expected)


@given(cases(), widths)
@settings(max_examples=60, deadline=None)
def test_windows_hold_visible_neighbours_and_zeros(case, width):
    visible, size = case
    blocks, x = ActiveBlocks(visible), dense_map(visible, size)
    windows = blocks.halo(size, width).gather(blocks.pack(x))
    seen = voxelwise(visible, size)
    for window, (n, *place) in zip(windows, visible[:, 0].nonzero().tolist(), strict=True):
        reach = [range(p * s - w, (p + 1) * s + w) for p, s, w in zip(place, size, width, strict=True)]
        for at, got in zip(itertools.product(*reach), window.flatten(0, 2), strict=True):
            within = all(0 <= i < length for i, length in zip(at, seen.shape[1:], strict=True))
            expected = x[(n, slice(None), *at)] if within and seen[(n, *at)] else torch.zeros(2, dtype=torch.float64)
            assert torch.equal(got, expected)


@given(cases(), widths)
@settings(max_examples=60, deadline=None)
def test_scatter_is_the_transpose_of_gather(case, width):
    visible, size = case
    blocks = ActiveBlocks(visible)
    halo, x = blocks.halo(size, width), blocks.pack(dense_map(visible, size))
    windows = halo.gather(x)
    probe = torch.randn_like(windows)
    torch.testing.assert_close((windows * probe).sum(), (x * halo.scatter(probe)).sum(), rtol=1e-12, atol=1e-12)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_means_are_over_each_samples_own_blocks(case):
    visible, size = case
    blocks, voxels = ActiveBlocks(visible), size[0] * size[1] * size[2]
    x = dense_map(visible, size)
    means = blocks.mean(blocks.pack(x).flatten(1, 3).sum(1), voxels)
    seen = voxelwise(visible, size)
    for row, n in zip(means, visible[:, 0].nonzero()[:, 0].tolist(), strict=True):
        torch.testing.assert_close(row, x[n][:, seen[n]].mean(1), rtol=1e-12, atol=1e-12)


def test_nothing_visible_is_refused():
    with pytest.raises(ValueError, match="no block"):
        ActiveBlocks(torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool))
