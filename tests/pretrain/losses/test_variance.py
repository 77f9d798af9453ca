"""VICReg's variance term against a loop, at its ends, and over two ranks."""

import pytest
import torch

from scanfoundry.pretrain.losses.variance import variance_hinge


def looped(features):
    """By loops over dimensions and rows."""
    rows, width = features.shape
    units = [[value.item() * width**0.5 / row.norm().item() for value in row] for row in features]
    total = 0.0
    for j in range(width):
        column = [row[j] for row in units]
        mean = sum(column) / rows
        variance = sum((value - mean) ** 2 for value in column) / (rows - 1)
        total += max(0.0, 1 - (variance + 1e-4) ** 0.5)
    return total / width


@pytest.mark.parametrize("shape", [(2, 3), (7, 4), (5, 16)])
def test_it_equals_the_loop(shape):
    torch.manual_seed(0)
    features = torch.randn(shape, dtype=torch.float64) + 1
    assert variance_hinge(features).item() == pytest.approx(looped(features), rel=1e-12)
    assert variance_hinge(1000 * features).item() == pytest.approx(looped(features), rel=1e-12)  # scale is free


def test_it_is_large_in_a_collapse_and_none_where_directions_are_spread():
    torch.manual_seed(0)
    same = torch.ones(64, 8) + 1e-6 * torch.randn(64, 8)
    assert variance_hinge(same).item() == pytest.approx(0.99, abs=1e-3)
    spread = torch.cat((torch.eye(8), -torch.eye(8))).repeat(4, 1)
    assert variance_hinge(spread).item() < 0.01
    half = torch.randn(512, 8)
    half[:, 4:] = 1e-3  # half of the dimensions are dead
    assert variance_hinge(half).item() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="two rows or more"):
        variance_hinge(torch.randn(1, 8))


def test_it_pushes_a_collapsed_encoder_apart():
    torch.manual_seed(0)
    features = (torch.ones(32, 8) + 0.01 * torch.randn(32, 8)).requires_grad_()
    before = variance_hinge(features)
    (gradient,) = torch.autograd.grad(before, features)
    assert variance_hinge(features - 0.5 * gradient / gradient.abs().max()) < 0.9 * before


CROSS_RANK = """
import torch
import torch.distributed as dist
from torch import nn
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.losses.variance import variance_hinge
world = join("cpu", 1)
x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
torch.manual_seed(0)
net = nn.Linear(5, 4).double()
n = len(x) // world.size
loss = variance_hinge(net(x[world.rank * n : (world.rank + 1) * n]))
gradients = torch.autograd.grad(loss, list(net.parameters()))
for tensor in (value := loss.detach().clone(), *gradients):
    dist.all_reduce(tensor)
    tensor /= world.size
print(*(f"{float(v):.17g}" for t in (value, *gradients) for v in t.flatten()))
"""


def test_two_ranks_compute_what_one_computes(ranks):
    one, two = (torch.tensor([float(v) for v in ranks(CROSS_RANK, size).split()]) for size in (1, 2))
    assert one[1:].abs().max() > 1e-3
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10)
