import pytest
import torch
from torch import nn

from scanfoundry.finetune.heads.bfloat16 import columns_fail, gradients_fail

CUBES = [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8)]


def test_a_map_of_depth_two_is_what_fails():
    assert gradients_fail(16, CUBES)
    assert not gradients_fail(24, CUBES)
    assert not gradients_fail(1, [(1, 2, 2), (1, 4, 4)])
    assert gradients_fail(15, CUBES)  # sizes are rounded up


def test_a_single_column_is_what_fails():
    assert columns_fail(8, CUBES)
    assert columns_fail(3, CUBES)  # sizes are rounded up
    assert not columns_fail(16, CUBES)


@pytest.mark.parametrize("depth", [1, 3, 4, 8])
def test_other_depths_are_right(depth):
    """The fact that the rule rests on, on whatever machine this runs."""
    assert not gradients_fail(depth, [(1, 1, 1)])
    torch.manual_seed(0)
    half, full = nn.Conv3d(16, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1)
    full.load_state_dict(half.state_dict())
    x, weight = torch.randn(2, 16, depth, 8, 8), torch.randn(2, 16, depth, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = half(x)
    (y.float() * weight).sum().backward()
    (full(x) * weight).sum().backward()
    apart = (half.weight.grad - full.weight.grad).abs().max() / full.weight.grad.abs().max()
    assert apart < 0.02
