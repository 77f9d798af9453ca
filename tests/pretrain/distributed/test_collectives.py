"""Values and averaged gradients at two ranks against the same computation in one process."""

import pytest
import torch

from scanfoundry.pretrain.distributed.collectives import gathered, global_moments, rank_and_size, summed

COMMON = """
import torch
import torch.distributed as dist
from scanfoundry.pretrain.distributed.collectives import gathered, global_moments, rank_and_size, summed
from scanfoundry.pretrain.distributed.world import join
world = join("cpu", 1)
g = torch.Generator().manual_seed(0)
everything = torch.randn(3 * world.size, 5, generator=g, dtype=torch.float64)
probe = torch.randn(3 * world.size, 5, generator=g, dtype=torch.float64)
weight = torch.randn(5, 5, generator=g, dtype=torch.float64).requires_grad_()
rows = slice(3 * world.rank, 3 * world.rank + 3)
def averaged(loss):
    grad = torch.autograd.grad(loss, weight)[0]
    dist.all_reduce(grad)
    return grad / world.size
def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
"""


def test_without_a_process_group_they_pass_the_tensor_through():
    x = torch.randn(3, 2)
    assert rank_and_size() == (0, 1)
    assert gathered(x) is x
    assert summed(x) is x


def test_moments_are_those_of_the_batch_also_far_from_zero():
    x = torch.randn(64, 3) + 1e4
    mean, variance, count = global_moments(x)
    assert count == 64
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(variance, x.double().var(0, unbiased=False).float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_gathered_in_rank_order_with_the_gradient_of_the_whole(ranks, size):
    """Each rank's loss weighs all rows by its own probe: what the others ask for must come back."""
    ranks(
        COMMON
        + """
assert rank_and_size() == (world.rank, world.size)
y = gathered(everything[rows] @ weight)
whole = everything @ weight
assert torch.equal(y, whole)
own = (y.square() * probe * (world.rank + 1)).sum()
expected = sum((whole.square() * probe * (rank + 1)).sum() for rank in range(world.size)) / world.size
close(averaged(own), torch.autograd.grad(expected, weight)[0])
ids = torch.arange(4, dtype=torch.int64).view(4, 1) + 10 * world.rank
assert gathered(ids).flatten().tolist() == [10 * r + i for r in range(world.size) for i in range(4)]
assert gathered(everything[rows].t()).shape == (5 * world.size, 3)  # not contiguous
""",
        size,
    )


@pytest.mark.parametrize("size", [1, 2])
def test_summed_with_the_gradient_of_the_whole(ranks, size):
    ranks(
        COMMON
        + """
first = everything[rows] @ weight
total = summed(first.t() @ first)
whole = (everything @ weight).t() @ (everything @ weight)
close(total, whole)
own = (total.square() * (world.rank + 1)).sum()
expected = sum((whole.square() * (rank + 1)).sum() for rank in range(world.size)) / world.size
close(averaged(own), torch.autograd.grad(expected, weight)[0])
""",
        size,
    )


def test_moments_over_ranks_of_unequal_batches(ranks):
    ranks(
        COMMON
        + """
rows = slice(0, 2) if world.rank == 0 else slice(2, 6)
mean, variance, count = global_moments(everything[rows] @ weight)
whole = everything @ weight
close(mean, whole.mean(0))
close(variance, whole.var(0, unbiased=False))
assert count == 6
loss = ((mean + variance) * probe[0]).sum()
expected = ((whole.mean(0) + whole.var(0, unbiased=False)) * probe[0]).sum()
close(averaged(loss), torch.autograd.grad(expected, weight)[0])
""",
        2,
    )


def test_ragged_batches_are_refused_on_every_rank(ranks):
    ranks(
        COMMON
        + """
for shape in ((3 + world.rank, 5), (3, 5 + world.rank)):
    try:
        gathered(torch.zeros(shape))
    except ValueError as error:
        assert "as many rows on each" in str(error), error
    else:
        raise AssertionError("ragged batches were gathered")
""",
        2,
    )
