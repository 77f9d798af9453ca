"""Sobel's magnitude against plain loops, in float64; what touches the border or an invalid voxel is not known."""

import itertools
import math

import pytest
import torch

from scanfoundry.pretrain.losses.gradient_map import gradient_map

SMOOTH, SLOPE = (0.25, 0.5, 0.25), (-0.5, 0.0, 0.5)


def naive(voxels, valid):
    """Voxel by voxel, neighbour by neighbour, with Python numbers."""
    magnitude, known = torch.zeros_like(voxels), torch.zeros_like(valid)
    batch, channels, *shape = voxels.shape
    axes = [0, 1, 2] if shape[0] > 1 else [1, 2]
    steps = [(-1, 0, 1) if axis in axes else (0,) for axis in range(3)]
    for b, *place in itertools.product(range(batch), *map(range, shape)):
        around = [(step, tuple(p + s for p, s in zip(place, step, strict=True))) for step in itertools.product(*steps)]
        inside = all(0 <= p < n for _, where in around for p, n in zip(where, shape, strict=True))
        if not inside or not all(valid[(b, 0, *where)] for _, where in around):
            continue
        known[(b, 0, *place)] = True
        for c in range(channels):
            squares = 0.0
            for along in axes:
                total = 0.0
                for step, where in around:
                    kernel = [(SLOPE if axis == along else SMOOTH)[step[axis] + 1] for axis in axes]
                    total += math.prod(kernel) * float(voxels[(b, c, *where)])
                squares += total**2
            magnitude[(b, c, *place)] = math.sqrt(squares)
    return magnitude, known


@pytest.mark.parametrize("shape", [(1, 5, 7), (1, 3, 3), (4, 3, 6), (3, 5, 4)])
def test_it_equals_the_naive_loop(shape):
    torch.manual_seed(0)
    voxels = torch.randn(2, 2, *shape, dtype=torch.float64)
    valid = torch.rand(2, 1, *shape) > 0.04
    magnitude, known = gradient_map(voxels, valid)
    expected, where = naive(voxels, valid)
    torch.testing.assert_close(magnitude, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(known, where)
    assert known.any()


def test_a_slope_is_its_change_per_voxel_and_constants_have_none():
    d, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (5, 6, 7)), indexing="ij")
    valid = torch.ones(1, 1, 5, 6, 7, dtype=torch.bool)
    magnitude, known = gradient_map((3 * d + 4 * h + 12 * w)[None, None], valid)
    torch.testing.assert_close(magnitude[known], torch.full((3 * 4 * 5,), 13.0, dtype=torch.float64))
    assert not gradient_map(torch.full((1, 1, 5, 6, 7), 1e4), valid)[0].any()


def test_invalid_voxels_change_nothing_even_where_they_are_not_finite():
    torch.manual_seed(0)
    voxels = torch.randn(1, 1, 1, 8, 9)
    valid = torch.ones_like(voxels, dtype=torch.bool)
    valid[..., 3, 4] = False
    magnitude, known = gradient_map(torch.where(valid, voxels, torch.nan), valid)
    again, same = gradient_map(voxels, valid)
    assert torch.equal(magnitude, again)
    assert torch.equal(known, same)
    assert int(known.sum()) == 6 * 7 - 9


def test_it_is_float32_under_autocast_and_for_bfloat16_scans_and_refuses_what_is_too_thin():
    voxels, valid = torch.randn(1, 1, 1, 8, 8), torch.ones(1, 1, 1, 8, 8, dtype=torch.bool)
    exact, _ = gradient_map(voxels, valid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_map(voxels, valid)[0], exact)
    assert gradient_map(voxels.bfloat16(), valid)[0].dtype == torch.float32
    with pytest.raises(ValueError, match="no stencil of 3 voxels"):
        gradient_map(torch.randn(1, 1, 2, 8, 8), torch.ones(1, 1, 2, 8, 8, dtype=torch.bool))
