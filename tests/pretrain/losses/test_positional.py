"""Soft positives against loops in float64, gradients too; limits are the plain losses; two ranks against one."""

import math

import pytest
import torch
from gradients import assert_same_with_gradients

from scanfoundry.pretrain.losses.contrastive import dcl, moco_v3, nt_xent
from scanfoundry.pretrain.losses.positional import position_relations, soft_dcl, soft_moco_v3, soft_nt_xent

NAN = math.nan
# Of six pairs, both views: two axes. The fourth has no position, the last two are of another group or none of each.
POSITIONS = [
    [[0.10, 0.5], [0.12, 0.5]], [[0.15, 0.5], [0.9, 0.1]], [[0.13, NAN], [0.2, NAN]],
    [[NAN, NAN], [NAN, NAN]], [[0.11, 0.5], [0.4, 0.5]], [[0.41, 0.5], [0.1, NAN]],
]  # fmt: skip
GROUPS = [[1, 1], [1, 1], [1, 1], [1, 1], [2, 1], [1, 2]]
SAME = [[1, 1], [2, 2], [3, 3], [1, 1], [4, 4], [1, 4]]
KERNELS = ["uniform", "gaussian"]
LOSSES = {"nt_xent": (soft_nt_xent, nt_xent), "dcl": (soft_dcl, dcl)}


@pytest.fixture
def views():
    return torch.randn(2, 6, 4, dtype=torch.float64).requires_grad_().unbind()


@pytest.fixture
def keys():
    return torch.randn(2, 6, 4, dtype=torch.float64).unbind()


def relations(kernel="uniform", bandwidth=0.1, positions=POSITIONS, same=SAME):
    positions = torch.tensor(positions, dtype=torch.float64)
    same = None if same is None else torch.tensor(same)
    return position_relations(positions, torch.tensor(GROUPS), same, kernel, bandwidth)


def weight_and_place(a, b, kernel, bandwidth):
    """By hand, for rows a and b = (pair, view): the weight of b for a, and whether b is in the denominator."""
    if a[0] == b[0]:
        return float(a[1] != b[1]), a[1] != b[1]
    (i, u), (j, v) = a, b
    one, two = POSITIONS[i][u], POSITIONS[j][v]
    if GROUPS[i][u] != GROUPS[j][v] or all(map(math.isnan, one)) or all(map(math.isnan, two)):
        return 0.0, not set(SAME[i]) & set(SAME[j])
    distance = math.dist(*([0.5 if math.isnan(x) else x for x in p] for p in (one, two)))
    if kernel == "uniform":
        return float(distance < bandwidth), True
    return math.exp(-(distance**2) / (2 * bandwidth**2)), True


def naive(name, anchors, others, temperature, kernel, bandwidth, views):
    """Per pair; anchors and others are [view][pair]; `views`: which views of others an anchor of a view looks at."""
    losses = []
    for i in range(6):
        both = []
        for u in (0, 1):
            a = anchors[u][i] / anchors[u][i].norm()
            positives = weights = below = 0
            for j in range(6):
                for v in views(u):
                    b = others[v][j] / others[v][j].norm()
                    w, counted = weight_and_place((i, u), (j, v), kernel, bandwidth)
                    positives, weights = positives + w * a.dot(b) / temperature, weights + w
                    share = 1 - w if name == "dcl" else 1
                    if counted:
                        below = below + share * torch.exp(a.dot(b) / temperature)
            both.append(torch.log(below) - positives / weights)
        losses.append(both[0] + both[1])
    return torch.stack(losses) / 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_naive_loop(views, name, kernel):
    related = relations(kernel)
    soft = torch.tensor([sum(weight_and_place((i, u), (j, v), kernel, 0.1)[0] for u in (0, 1)
                             for j in range(6) for v in (0, 1)) / 2 - 1 for i in range(6)])  # fmt: skip
    torch.testing.assert_close(related.soft, soft.double(), rtol=1e-6, atol=1e-6)
    assert soft.max() > 1
    expected = naive(name, views, views, 0.2, kernel, 0.1, lambda _: (0, 1))
    assert_same_with_gradients(LOSSES[name][0](*views, 0.2, related), expected, views)


@pytest.mark.parametrize("kernel", KERNELS)
def test_moco_equals_the_naive_loop(views, keys, kernel):
    expected = 4 * 0.2 * naive("nt_xent", views, keys, 0.2, kernel, 0.1, lambda view: (1 - view,))
    assert_same_with_gradients(soft_moco_v3(views, keys, 0.2, relations(kernel)), expected, views)


@pytest.mark.parametrize(
    "limit", [{"bandwidth": 1e-9, "same": None}, {"positions": [[[NAN, NAN]] * 2] * 6}], ids=["threshold 0", "unknown"]
)
def test_without_soft_positives_the_losses_are_the_plain_ones(views, keys, limit):
    related, same = relations(**limit), torch.tensor(SAME) if "same" not in limit else None
    assert not related.soft.any()
    for soft, plain in LOSSES.values():
        assert_same_with_gradients(soft(*views, 0.1, related), plain(*views, 0.1, same=same), views)
    assert_same_with_gradients(soft_moco_v3(views, keys, 0.1, related), moco_v3(views, keys, 0.1, same), views)


def test_everything_at_one_place_only_attracts(views):
    """No negative is left: finite, and what NT-Xent would need to push apart is pulled together."""
    related = position_relations(torch.zeros(6, 2, 1), torch.zeros(6, 2, dtype=torch.int64), None)
    assert (related.soft == 10).all()
    for soft, _ in LOSSES.values():
        gradients = torch.autograd.grad(soft(*views, 0.1, related).sum(), views)
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_half_precision_is_counted_in_float32_and_nan_is_not_hidden(views):
    half = [view.detach().bfloat16().requires_grad_() for view in views]
    related = relations()
    for soft, _ in LOSSES.values():
        with torch.autocast("cpu", torch.bfloat16):
            ours = soft(*half, 0.05, related)
        assert ours.dtype == torch.float32
        expected = soft(*(view.double() for view in half), 0.05, related)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
        poisoned = views[0].detach().clone()
        poisoned[0, 0] = NAN
        assert soft(poisoned, views[1], 0.1, related).isnan().any()


CROSS_RANK = """
import torch
import torch.distributed as dist
from torch import nn
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.losses.positional import position_relations, soft_dcl, soft_moco_v3, soft_nt_xent
world = join("cpu", 1)
nan = float("nan")
rows = slice(world.rank * 6 // world.size, (world.rank + 1) * 6 // world.size)
g = torch.Generator().manual_seed(0)
x = torch.randn(2, 6, 6, generator=g, dtype=torch.float64)[:, rows]
positions, groups, same = torch.tensor({positions})[rows], torch.tensor({groups})[rows], torch.tensor({same})[rows]
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
key_net = nn.Linear(6, 4).double()
for kernel in ("uniform", "gaussian"):
    related = position_relations(positions, groups, same, kernel)
    z = net(x[0]), net(x[1])
    losses = [loss(*z, 0.1, related) for loss in (soft_nt_xent, soft_dcl)]
    losses.append(soft_moco_v3(z, (key_net(x[0]), key_net(x[1])), 0.2, related))
    for loss in losses:
        gradients = torch.autograd.grad(loss.mean(), list(net.parameters()), retain_graph=True)
        values = [related.soft.mean(), loss.detach().mean(), *gradients]
        for tensor in values:
            dist.all_reduce(tensor)
            tensor /= world.size
        print(*(f"{{float(v):.17g}}" for t in values for v in t.flatten()))
"""


def test_two_ranks_compute_what_one_computes(ranks):
    """A gather without gradient, one counted twice, or a partner looked for on another rank fails here."""
    code = CROSS_RANK.format(positions=POSITIONS, groups=GROUPS, same=SAME)
    one, two = (ranks(code, size).splitlines() for size in (1, 2))
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        expected, ours = (torch.tensor([float(v) for v in line.split()], dtype=torch.float64) for line in (a, b))
        assert expected[0] > 0.5
        assert expected[2:].abs().max() > 1e-3
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
