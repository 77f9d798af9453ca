"""The 1x1 convolution on up-sampled maps: at points as on the whole scan; Dice; shares of the ranks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scanfoundry.pretrain.probes.images import Images, share_of
from scanfoundry.pretrain.probes.segmentation import at_points, dice, draw_points, mean_dice, predicted

SHAPES = [((8, 12, 6), [(8, 12, 6), (4, 6, 3), (2, 2, 1)]), ((1, 16, 12), [(1, 16, 12), (1, 4, 3)])]


def images(shape, rows=3, own=3):
    mask = torch.randint(0, 3, (rows, *shape), generator=torch.Generator().manual_seed(0))
    valid = torch.ones(rows, 1, *shape, dtype=torch.bool)
    valid[..., :2] = False
    return Images(torch.zeros(rows, 1, *shape), valid, mask, list(range(rows)), own)


@pytest.mark.parametrize(("shape", "levels"), SHAPES)
def test_points_see_what_the_whole_scan_sees(shape, levels):
    """Features up-sampled first, then mixed: the order that the probe turns round."""
    torch.manual_seed(0)
    maps = [torch.randn(3, 2 + i, *level, dtype=torch.float64) for i, level in enumerate(levels)]
    stack = torch.cat([F.interpolate(each, size=shape, mode="trilinear", align_corners=False) for each in maps], 1)
    given = images(shape)
    points = draw_points(given, 60)
    read = at_points(maps, points.grid.double())
    weights, bias = torch.randn(stack.shape[1], 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    scores = torch.einsum("bfdhw,fk->bkdhw", stack, weights) + bias.view(1, 3, 1, 1, 1)
    maps = [each.float() for each in maps]
    assert torch.equal(predicted(maps, weights, bias, torch.Size(shape)), scores.argmax(1))
    size = torch.tensor(shape[::-1])
    for row in range(3):
        where = ((points.grid[row] + 1) * size / 2 - 0.5).round().long()
        counted = points.weights[row] > 0
        x, y, z = where[counted].unbind(1)
        torch.testing.assert_close(read[row][counted], stack[row, :, z, y, x].t(), rtol=1e-5, atol=1e-5)
        assert torch.equal(points.labels[row][counted], given.mask[row, z, y, x])
        assert given.valid[row, 0, z, y, x].all()


def test_points_stand_for_all_voxels_and_repeated_images_for_none():
    given = images((8, 12, 6), rows=3, own=2)
    given.mask[0, :4] = 0
    given.mask[1] = -1
    given.mask[1, :2] = 2
    points = draw_points(given, 31)
    for row in range(2):
        flat = given.mask[row][given.valid[row, 0]]
        for label in (0, 1, 2):
            weight = points.weights[row][points.labels[row] == label].sum()
            assert weight == pytest.approx(int((flat == label).sum()))
    counts = [int(((points.labels[0] == label) & (points.weights[0] > 0)).sum()) for label in (0, 1, 2)]
    assert counts == [10, 10, 10]
    assert not points.weights[2].any()
    assert int((points.weights[1] > 0).sum()) == 31
    again = draw_points(given, 31)
    assert torch.equal(points.grid, again.grid)


def test_dice_leaves_out_what_does_not_count_and_what_is_not_there():
    truth = torch.tensor([[[[1, 1, 0, -1, 2, 0]]], [[[0, 0, 0, 0, 0, 0]]]])
    found = torch.tensor([[[[1, 0, 1, 1, 0, 0]]], [[[0, 0, 0, 0, 0, 1]]]])
    values = dice(found, truth, 4)
    np.testing.assert_allclose(values.numpy(), [[2 * 1 / (2 + 2), 0, np.nan], [0, np.nan, np.nan]])
    assert mean_dice(values) == pytest.approx((0.25 + 0) / 2)
    assert np.isnan(mean_dice(torch.full((2, 2), torch.nan)))


@pytest.mark.parametrize(("count", "size"), [(1, 1), (5, 2), (6, 3), (1, 4), (7, 4)])
def test_shares_are_equally_long_and_hold_every_scan(count, size):
    shares = [share_of(count, rank, size) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted({place for share in shares for place in share}) == list(range(count))
