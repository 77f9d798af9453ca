"""Each loss against a double loop over embeddings in float64, gradients too; two ranks against one."""

import math

import pytest
import torch
from gradients import assert_same_with_gradients

from scanfoundry.pretrain.losses.contrastive import alignment, dcl, dclw, moco_v3, normalised, nt_xent, pair_weights

LOSSES = {"nt_xent": nt_xent, "dcl": dcl, "dclw": dclw}
SAME = {
    "none": None,
    "ids": torch.tensor([3, 5, 3, 8, 8]),
    "pairs of ids": torch.tensor([[3, 4], [5, 6], [7, 3], [8, 9], [1, 2]]),
}


@pytest.fixture
def views():
    """Two views (5, 4) in float64."""
    return torch.randn(2, 5, 4, dtype=torch.float64).requires_grad_().unbind()


def excluded(same, i, j):
    if same is None:
        return i == j
    return i == j or bool(set(same[i].view(-1).tolist()) & set(same[j].view(-1).tolist()))


def naive(name, first, second, temperature, sigma, same):
    """Per pair, by loops over rows, views and the other rows."""
    n = len(first)
    unit = [[x / x.dot(x).sqrt() for x in view] for view in (first, second)]
    weights = [torch.exp(unit[0][i].dot(unit[1][i]).detach() / sigma) for i in range(n)]
    mean = sum(weights) / n
    losses = []
    for i in range(n):
        both = []
        for view in (0, 1):
            anchor, other = unit[view][i], unit[1 - view][i]
            positive = torch.exp(anchor.dot(other) / temperature)
            denominator = positive if name == "nt_xent" else 0
            for j in range(n):
                if excluded(same, i, j):
                    continue
                for against in (0, 1):
                    denominator = denominator + torch.exp(anchor.dot(unit[against][j]) / temperature)
            weight = 2 - weights[i] / mean if name == "dclw" else 1
            both.append(-weight * torch.log(positive) + torch.log(denominator))
        losses.append((both[0] + both[1]) / 2)
    return torch.stack(losses)


def naive_moco(queries, keys, temperature, same):
    n = len(queries[0])
    unit = [[[x / x.dot(x).sqrt() for x in view] for view in side] for side in (queries, keys)]
    losses = []
    for i in range(n):
        total = 0
        for view in (0, 1):
            q, k = unit[0][view], unit[1][1 - view]
            positive = torch.exp(q[i].dot(k[i]) / temperature)
            others = [torch.exp(q[i].dot(k[j]) / temperature) for j in range(n) if not excluded(same, i, j)]
            total = total - 2 * temperature * torch.log(positive / (positive + sum(others)))
        losses.append(total)
    return torch.stack(losses)


@pytest.mark.parametrize("same", SAME)
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_naive_loop(views, name, temperature, same):
    ours = LOSSES[name](*views, temperature, same=SAME[same])
    assert_same_with_gradients(ours, naive(name, *views, temperature, 0.5, SAME[same]), views)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(views, name):
    def summed_loss(*inputs):
        return LOSSES[name](*inputs, 0.3).sum()

    if name == "dclw":  # its weights are constants to the gradient, which finite differences do not know
        weights = pair_weights(*views, 0.5)
        positive = alignment(*views) / 0.3
        expected = dcl(*views, 0.3) + positive - weights * positive
        assert_same_with_gradients(dclw(*views, 0.3), expected, views)
    else:
        assert torch.autograd.gradcheck(summed_loss, views)


@pytest.mark.parametrize("same", SAME)
def test_moco_equals_the_naive_loop_and_gives_keys_no_gradient(views, same):
    keys = torch.randn(2, 5, 4, dtype=torch.float64).requires_grad_().unbind()
    ours = moco_v3(views, keys, 0.2, SAME[same])
    assert_same_with_gradients(ours, naive_moco(views, [k.detach() for k in keys], 0.2, SAME[same]), views)
    assert torch.autograd.grad(ours.sum(), keys, allow_unused=True) == (None, None)


def test_dclw_weights_have_mean_one_and_pull_far_pairs_more(views):
    weights = pair_weights(*views, 0.5)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    assert not weights.requires_grad
    assert torch.equal(weights.argsort(), alignment(*views).argsort(descending=True))


def test_scale_of_embeddings_and_order_of_pairs_and_views_do_not_matter(views):
    first, second = views
    order = torch.tensor([2, 0, 4, 1, 3])
    for loss in LOSSES.values():
        expected = loss(first, second)
        torch.testing.assert_close(loss(3 * first, 0.1 * second), expected)
        torch.testing.assert_close(loss(second, first), expected)
        torch.testing.assert_close(loss(first[order], second[order]), expected[order])


def test_half_precision_at_low_temperature_is_counted_in_float32(views):
    first, second = (view.detach().bfloat16().requires_grad_() for view in views)
    for loss in LOSSES.values():
        with torch.autocast("cpu", torch.bfloat16):
            ours = loss(first, second, 0.05)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), loss(first.double(), second.double(), 0.05), rtol=1e-5, atol=1e-5)
        assert all(g.isfinite().all() for g in torch.autograd.grad(ours.mean(), (first, second)))


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_embeddings_stay_finite(name):
    loss = LOSSES[name]
    one = torch.randn(1, 4).expand(6, 4).clone().requires_grad_()
    identical = loss(one, one, 0.05)
    expected = {"nt_xent": math.log(11), "dcl": math.log(10), "dclw": math.log(10)}[name]
    torch.testing.assert_close(identical, torch.full((6,), expected), rtol=1e-4, atol=1e-4)
    zeros = torch.zeros(6, 4, requires_grad=True)
    opposite = torch.cat((one[:3], -one[3:])).detach().requires_grad_()
    for pair in ((one, one), (zeros, zeros), (opposite, opposite.flip(0)), (zeros, one)):
        losses = loss(*pair, 0.05)
        assert losses.isfinite().all()
        for gradient in torch.autograd.grad(losses.sum(), pair, allow_unused=True):
            assert gradient is None or gradient.abs().max() < 1e3
    assert not torch.autograd.grad(loss(zeros, zeros).sum(), zeros)[0].any()


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_that_are_all_of_one_scan_only_attract(name):
    first, second = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_().unbind()
    losses = LOSSES[name](first, second, 0.1, same=torch.zeros(3, dtype=torch.int64))
    gradients = torch.autograd.grad(losses.sum(), (first, second))
    assert all(g.isfinite().all() for g in (losses, *gradients))
    if name == "nt_xent":
        assert not losses.any()
    elif name == "dcl":
        torch.testing.assert_close(losses, -alignment(first, second) / 0.1)


def test_the_positive_of_a_pair_is_never_its_own_negative(views):
    """At a low temperature a row counted among its own negatives would bind the loss at log 2 or above."""
    first = normalised(torch.eye(4, dtype=torch.float64))
    assert nt_xent(first, first, 0.01).max() < 1e-30
    assert dcl(first, first, 0.01).max() < -90


def test_not_a_number_is_not_hidden(views):
    first, second = views
    poisoned = first.detach().clone()
    poisoned[0, 0] = float("nan")
    for loss in LOSSES.values():
        assert loss(poisoned, second).isnan().any()


@pytest.mark.parametrize("loss", [*LOSSES.values(), lambda a, b: moco_v3((a, b), (a, b))])
def test_one_pair_has_no_negatives(loss):
    one = torch.randn(1, 4)
    with pytest.raises(ValueError, match="two pairs or more"):
        loss(one, one)


CROSS_RANK = """
import torch
import torch.distributed as dist
from torch import nn
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.losses.contrastive import dcl, dclw, moco_v3, nt_xent
world = join("cpu", 1)
TOTAL = {total}
g = torch.Generator().manual_seed(0)
x = torch.randn(2, TOTAL, 6, generator=g, dtype=torch.float64)
ids = {ids}
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
key_net = nn.Linear(6, 4).double()
n = TOTAL // world.size
rows = slice(world.rank * n, (world.rank + 1) * n)
def losses():
    a, b = net(x[0, rows]), net(x[1, rows])
    keys = (key_net(x[0, rows]), key_net(x[1, rows]))
    same = None if ids is None else torch.tensor(ids)[rows]
    yield nt_xent(a, b, 0.1, same)
    yield dcl(a, b, 0.1, same)
    yield dclw(a, b, 0.1, 0.5, same)
    yield moco_v3((a, b), keys, 0.2, same)
for loss in losses():
    gradients = torch.autograd.grad(loss.mean(), list(net.parameters()), retain_graph=True)
    value = loss.detach().mean()
    for tensor in (value, *gradients):
        dist.all_reduce(tensor)
        tensor /= world.size
    print(*(f"{{float(v):.17g}}" for t in (value, *gradients) for v in t.flatten()))
"""


@pytest.mark.parametrize(("total", "ids"), [(6, None), (6, [1, 2, 3, 1, 4, 4]), (2, None)])
def test_two_ranks_compute_what_one_computes(ranks, total, ids):
    """(2, None) is one pair on each rank. A gather without gradient, or one counted twice, fails here."""
    one, two = (ranks(CROSS_RANK.format(total=total, ids=ids), size).splitlines() for size in (1, 2))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        expected, ours = (torch.tensor([float(v) for v in line.split()], dtype=torch.float64) for line in (a, b))
        assert expected[1:].abs().max() > 1e-3
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
