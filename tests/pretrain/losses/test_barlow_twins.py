"""Barlow Twins and its mixed regulariser against double loops in float64, gradients too; two ranks against one."""

import pytest
import torch
from gradients import assert_same_with_gradients

from scanfoundry.pretrain.losses.barlow_twins import barlow_twins, mixed_regulariser, squared_norm, standardised

WIDTHS = [2, 23]  # below and above what is taken from the products of rows


def embeddings(width, count=2, rows=5):
    return torch.randn(count, rows, width, dtype=torch.float64).requires_grad_().unbind()


def naive_standardised(z, eps=1e-5):
    columns = []
    for column in z.unbind(dim=1):
        mean = sum(column) / len(column)
        variance = sum((v - mean) ** 2 for v in column) / len(column)
        columns.append(torch.stack([(v - mean) / (variance + eps) ** 0.5 for v in column]))
    return torch.stack(columns, dim=1)


def correlation(a, b, i, j):
    return sum(a[row, i] * b[row, j] for row in range(len(a))) / len(a)


def naive_barlow(first, second, redundancy):
    width = first.shape[1]
    on = sum((correlation(first, second, i, i) - 1) ** 2 for i in range(width))
    off = sum(correlation(first, second, i, j) ** 2 for i in range(width) for j in range(width) if i != j)
    return torch.stack((on, redundancy * off))


def naive_mixed(mixed, first, second, partner, share, redundancy):
    """The difference of the correlation matrices, cell by cell, as the paper has them (not the ImageNet script)."""
    width, shuffled = first.shape[1], second[partner]
    total = 0
    for view in (first, second):
        for i in range(width):
            for j in range(width):
                target = share * correlation(first, view, i, j) + (1 - share) * correlation(shuffled, view, i, j)
                total = total + (correlation(mixed, view, i, j) - target) ** 2
    return 0.5 * redundancy * total


def test_standardised_equals_the_loop_and_batch_norm():
    (z,) = embeddings(3, count=1)
    assert_same_with_gradients(standardised(z), naive_standardised(z), [z])
    torch.testing.assert_close(standardised(z), torch.nn.functional.batch_norm(z, None, None, training=True))
    far = torch.randn(64, 3) + 1000
    torch.testing.assert_close(standardised(far).double(), standardised(far.double()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", WIDTHS)
def test_both_terms_equal_the_naive_loop(width):
    first, second = embeddings(width)
    ours = torch.stack(barlow_twins(standardised(first), standardised(second), 0.3))
    plain = naive_barlow(naive_standardised(first), naive_standardised(second), 0.3)
    assert_same_with_gradients(ours, plain, [first, second])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_regulariser_equals_the_naive_loop(width):
    inputs = embeddings(width, count=3)
    partner = torch.tensor([3, 0, 4, 1, 2])
    ours = mixed_regulariser(*map(standardised, inputs), partner, 0.3, 0.7)
    plain = naive_mixed(*map(naive_standardised, inputs), partner, 0.3, 0.7)
    assert_same_with_gradients(ours, plain, inputs)


@pytest.mark.parametrize("width", [2, 3, 11, 23])
def test_squared_norm_is_the_same_both_ways(width):
    a, b = embeddings(width)
    assert_same_with_gradients(squared_norm(a, b), (a.t() @ b).square().sum(), [a, b])


@pytest.mark.parametrize("width", WIDTHS)
def test_gradcheck(width):
    def loss(*inputs):
        z = list(map(standardised, inputs))
        partner = torch.tensor([3, 0, 4, 1, 2])
        return sum(barlow_twins(z[1], z[2], 0.3)) + mixed_regulariser(*z, partner, 0.3, 0.7)

    assert torch.autograd.gradcheck(loss, embeddings(width, count=3))


def test_a_linear_network_has_no_mixed_loss():
    """With the targets of the ImageNet script, which takes Z2'Z2 for Z1'Z2, it would have one."""
    first, second = (standardised(z) for z in embeddings(3, rows=16))
    partner = torch.randperm(16)
    mixed = 0.3 * first + 0.7 * second[partner]
    assert mixed_regulariser(mixed, first, second, partner, 0.3).item() == pytest.approx(0, abs=1e-25)


def test_perfect_embeddings_score_zero_and_redundant_ones_do_not():
    ideal = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    z = standardised(ideal, eps=0)
    assert sum(barlow_twins(z, z)).item() == pytest.approx(0, abs=1e-20)
    twice = standardised(ideal[:, :1].expand(-1, 3), eps=0)
    on, off = barlow_twins(twice, twice, 0.5)
    assert on.item() == pytest.approx(0, abs=1e-20)
    assert off.item() == pytest.approx(0.5 * 6)


def test_half_precision_is_counted_in_float32():
    first, second = (z.detach().bfloat16() for z in embeddings(40, rows=8))
    with torch.autocast("cpu", torch.bfloat16):
        z1, z2 = standardised(first), standardised(second)
        ours = sum(barlow_twins(z1, z2))
    assert ours.dtype == z1.dtype == torch.float32
    exact = sum(barlow_twins(standardised(first.double()), standardised(second.double())))
    assert ours.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_degenerate_batches(width):
    for z in (torch.zeros(6, width), torch.ones(6, width), torch.randn(1, width).expand(6, width)):
        z = z.clone().requires_grad_()
        unit = standardised(z)
        on, off = barlow_twins(unit, unit)
        assert on.item() == pytest.approx(width, rel=1e-3)  # a collapsed dimension correlates with nothing
        assert off.item() == pytest.approx(0, abs=1e-5)
        assert torch.autograd.grad(on + off, z)[0].isfinite().all()
    with pytest.raises(ValueError, match="two rows or more"):
        standardised(torch.randn(1, width))


CROSS_RANK = """
import torch
import torch.distributed as dist
from torch import nn
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.losses.barlow_twins import barlow_twins, mixed_regulariser, standardised
world = join("cpu", 1)
TOTAL, WIDTH = {total}, {width}
g = torch.Generator().manual_seed(0)
x = torch.randn(3, TOTAL, 6, generator=g, dtype=torch.float64)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, WIDTH)).double()
n = TOTAL // world.size
rows = slice(world.rank * n, (world.rank + 1) * n)
partner = torch.arange(TOTAL).view(2, -1).flip(1)  # permuted within the halves, whatever the world size
partner = partner.flatten() if world.size == 1 else partner[0]
z = [standardised(net(view[rows])) for view in x]
losses = (*barlow_twins(z[1], z[2], 0.3), mixed_regulariser(*z, partner, 0.3, 0.7))
for loss in losses:
    gradients = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    value = loss.detach().clone()
    for tensor in (value, *gradients):
        dist.all_reduce(tensor)
        tensor /= world.size
    print(*(f"{{float(v):.17g}}" for t in (value, *gradients) for v in t.flatten()))
"""


@pytest.mark.parametrize(("total", "width"), [(12, 4), (6, 40), (2, 4), (2, 40)])
def test_two_ranks_compute_what_one_computes(ranks, total, width):
    """An all-reduce that autograd does not know gives half the gradient here (lightly issue 1977)."""
    one, two = (ranks(CROSS_RANK.format(total=total, width=width), size).splitlines() for size in (1, 2))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        expected, ours = (torch.tensor([float(v) for v in line.split()], dtype=torch.float64) for line in (a, b))
        assert expected[1:].abs().max() > 1e-8
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
