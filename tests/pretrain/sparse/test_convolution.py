"""The packed convolution against the dense one on maps with zeros on hidden voxels: values and gradients."""

import pytest
import torch
from unwritten import leave_behind

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.pretrain.sparse import convolution
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.convolution import _conv, packed_conv

LAYERS = {  # kernel, stride, groups
    "k3": (3, 1, 1),
    "k3 stride 2": (3, 2, 1),
    "k3 stride (1, 1, 2)": (3, (1, 1, 2), 1),
    "k1": (1, 1, 1),
    "k1 stride 2": (1, 2, 1),
    "k3 depthwise": (3, 1, 4),
    "k5 depthwise": (5, 1, 4),
    "k5 depthwise stride 2": (5, 2, 4),
}


def visible_blocks(grid):
    """Three samples with all, some and one of their blocks."""
    torch.manual_seed(3)
    visible = torch.rand(3, 1, *grid) > 0.5
    visible[0] = True
    visible[2] = False
    visible[2, 0, 0, -1, -1] = True
    return visible


@pytest.mark.parametrize("by_matrix", [False, True])
@pytest.mark.parametrize(("grid", "size"), [((2, 3, 2), (4, 2, 4)), ((2, 2, 3), (2, 2, 2)), ((1, 3, 4), (1, 4, 2))])
@pytest.mark.parametrize("layer", LAYERS)
def test_equal_to_the_dense_convolution(monkeypatch, by_matrix, grid, size, layer):
    monkeypatch.setattr(convolution, "CROSSOVER", 1e9 if by_matrix else 0)
    kernel, stride, groups = LAYERS[layer]
    visible = visible_blocks(grid)
    blocks = ActiveBlocks(visible)
    conv = DepthFreeConv3d(4, 4, kernel, stride, kernel // 2, groups=groups).double()
    shape = [n * b for n, b in zip(grid, size, strict=True)]
    x = torch.randn(3, 4, *shape, dtype=torch.float64)
    dense_in, packed_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    zeros = torch.zeros(4, dtype=torch.float64)
    dense = conv(blocks.unpack(blocks.pack(dense_in), zeros))
    dense = blocks.unpack(blocks.pack(dense), zeros)
    packed = blocks.unpack(packed_conv(conv, blocks.pack(packed_in), blocks), zeros)
    torch.testing.assert_close(packed, dense, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(dense)
    for one, other in zip(
        torch.autograd.grad((packed * probe).sum(), [packed_in, conv.weight, conv.bias]),
        torch.autograd.grad((dense * probe).sum(), [dense_in, conv.weight, conv.bias]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(8, 8, 8), (2, 2, 2)])  # a convolution, a matrix product
def test_autocast_computes_in_bfloat16_and_gives_float32_gradients(size):
    visible = visible_blocks((2, 2, 2))
    blocks, conv = ActiveBlocks(visible), DepthFreeConv3d(8, 8, 3, padding=1)
    x = torch.randn(len(blocks.sample), *size, 8)
    exact = packed_conv(conv, x, blocks)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = packed_conv(conv, x, blocks)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
    gradients = [torch.autograd.grad(y.float().square().sum(), conv.weight)[0] for y in (rounded, exact)]
    assert gradients[0].dtype == torch.float32
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("window", [(6, 6, 4), (4, 6, 3), (6, 4, 4)])
def test_bfloat16_of_a_single_column(window, groups):
    """Plain `F.conv3d` gives left-over memory there, see tests/backbones/test_layers.py."""
    x, weight = torch.randn(2, *window, 16), torch.randn(16, 16 // groups, 3, 3, 3)
    exact = _conv(x, weight, None, (1, 1, 2), groups)
    assert exact.shape[3] == 1
    for _ in range(4):
        leave_behind(torch.nan)
        ours = _conv(x.bfloat16(), weight.bfloat16(), None, (1, 1, 2), groups).float()
        assert (ours - exact).abs().max() < 0.03 * exact.abs().max()
