"""Convolutions in bfloat16 on a CPU, where oneDNN reads memory that nobody wrote for some small maps."""

import pytest
import torch
from unwritten import leave_behind

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d


def close(rough, exact):
    return torch.isfinite(rough).all() and (rough.float() - exact).abs().max() <= 0.03 * exact.abs().max()


SMALL = [(2, 4, 6), (3, 2, 2), (4, 4, 1), (2, 2, 2), (5, 3, 2), (3, 4, 3), (1, 4, 2), (4, 1, 2), (2, 3, 1), (1, 4, 1)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)])
def test_bfloat16_is_right_on_small_maps(stride, kernel, groups, autocast):
    """Plain `F.conv3d` fails this (torch 2.13): outputs and weight gradients of 1e36 and NaN."""
    torch.manual_seed(0)
    conv = DepthFreeConv3d(16, 16, kernel, stride, kernel // 2, groups=groups)
    rough = conv if autocast else DepthFreeConv3d(16, 16, kernel, stride, kernel // 2, groups=groups).bfloat16()
    rough.load_state_dict(conv.state_dict())
    for size in SMALL:
        x = torch.randn(2, 16, *size)
        x.requires_grad_()
        exact = conv(x)
        probe = torch.randn_like(exact)
        gradients = torch.autograd.grad((exact * probe).sum(), (conv.weight, x))
        for value in (float("nan"), 1e4, float("nan")):
            leave_behind(value)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = rough(x if autocast else x.bfloat16())
            assert y.dtype == torch.bfloat16
            assert close(y, exact), size
            leave_behind(value)
            ours = torch.autograd.grad((y * probe).sum(), (rough.weight, x))
            assert all(close(one, other) for one, other in zip(ours, gradients, strict=True)), size
