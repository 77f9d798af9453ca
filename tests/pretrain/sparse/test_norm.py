"""The packed norm against plain loops over each sample's visible voxels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.pretrain.sparse import norm as module
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.norm import packed_norm


def blocks_of(batch=3):
    """Uneven numbers of visible blocks."""
    visible = torch.zeros(batch, 1, 2, 2, 2, dtype=torch.bool)
    for sample in range(batch):
        visible[sample].view(-1)[: 2 + 3 * sample] = True
    return ActiveBlocks(visible)


def layer(kind, channels=3):
    made = nn.InstanceNorm3d(channels, affine=True) if kind == "instance" else nn.GroupNorm(channels, channels)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made.double()


def naive(norm, x, blocks, slope, residual):
    out = torch.empty_like(x)
    for sample in range(blocks.batch):
        mine = blocks.sample == sample
        for c in range(x.shape[-1]):
            values = x[mine][..., c]
            normed = (values - values.mean()) / torch.sqrt(values.var(unbiased=False) + norm.eps)
            out[mine, ..., c] = normed * norm.weight[c] + norm.bias[c]
    return F.leaky_relu(out if residual is None else out + residual, slope)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("slope", [1.0, 0.01])
@pytest.mark.parametrize("kind", ["instance", "group"])
def test_values_and_gradients_equal_the_naive_loop(monkeypatch, chunk, with_residual, slope, kind):
    monkeypatch.setattr(module, "CHUNK", chunk)
    blocks, norm = blocks_of(), layer(kind)
    x = torch.randn(len(blocks.sample), 2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    residual = torch.randn_like(x, requires_grad=True) if with_residual else None
    ours, plain = packed_norm(norm, x, blocks, slope, residual), naive(norm, x, blocks, slope, residual)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    inputs = [x, norm.weight, norm.bias] + ([] if residual is None else [residual])
    probe = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad((ours * probe).sum(), inputs), torch.autograd.grad((plain * probe).sum(), inputs),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_everything_visible_is_instance_norm_also_far_from_zero():
    blocks = ActiveBlocks(torch.ones(2, 1, 1, 1, 1, dtype=torch.bool))
    norm, x = nn.InstanceNorm3d(3, affine=True), torch.randn(2, 3, 6, 6, 6) + 300
    ours = blocks.unpack(packed_norm(norm, blocks.pack(x), blocks), torch.zeros(3))
    torch.testing.assert_close(ours, norm(x), rtol=1e-3, atol=1e-3)


def test_bfloat16_stays_and_is_computed_in_float32():
    blocks, norm = blocks_of(), layer("instance")
    x = (torch.randn(len(blocks.sample), 4, 4, 4, 3) + 8).bfloat16()
    ours = packed_norm(norm.float(), x, blocks, 0.01)
    assert ours.dtype == torch.bfloat16
    exact = naive(norm.double(), x.double(), blocks, 0.01, None)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-2, atol=1e-2)
