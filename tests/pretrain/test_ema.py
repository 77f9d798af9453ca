"""Followers against a plain average, in plain PyTorch and under DeepSpeed at ZeRO 0 to 3."""

import math

import pytest
import torch
from torch import nn

from scanfoundry.pretrain.ema import Follower, cosine_momentum, ema_update
from scanfoundry.pretrain.objectives.projector import GlobalBatchNorm1d


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), GlobalBatchNorm1d(4))


def test_parameters_and_buffers_are_averaged_and_counts_copied():
    teacher, student = small(), small()
    student(torch.randn(8, 3))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    ema_update(teacher, student, 0.9)
    for name, value in student.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * value if value.is_floating_point() else value
        torch.testing.assert_close(teacher.state_dict()[name], expected)
    assert teacher[2].num_batches_tracked == 1
    assert not torch.equal(teacher[2].running_mean, before["2.running_mean"])


def test_momentum_one_stands_still_and_zero_copies():
    teacher, student = small(), small()
    before = [p.clone() for p in teacher.parameters()]
    ema_update(teacher, student, 1.0)
    assert all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))
    ema_update(teacher, student, 0.0)
    assert all(torch.equal(*pair) for pair in zip(student.parameters(), teacher.parameters(), strict=True))


def test_networks_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"3\.weight"):
        ema_update(small(), small().append(nn.Linear(4, 4)), 0.9)


def test_a_follower_is_a_frozen_copy_that_drops_nothing_and_normalises_by_the_batch():
    leader = small()
    follower = Follower(net=leader)
    assert not any(p.requires_grad for p in follower.parameters())
    assert all(p.requires_grad for p in leader.parameters())
    assert {name for name, _ in follower.named_parameters()} == {f"net.{n}" for n, _ in leader.named_parameters()}
    follower.eval()
    follower.train()
    net, x = follower.get_submodule("net"), torch.randn(8, 3)
    once, again = net(x), net(x)
    assert torch.equal(once, again)
    torch.testing.assert_close(once.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert not net[2].running_mean.any()  # moved by `follow` alone
    leader(x)
    follower.follow(0.5, net=leader)
    torch.testing.assert_close(net[2].running_mean, 0.5 * leader[2].running_mean)
    follower.eval()
    assert not torch.equal(net(x), once)


def test_the_momentum_rises_to_one_along_a_cosine():
    assert cosine_momentum(0.99, 0) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 0.5) == pytest.approx(0.995)
    assert cosine_momentum(0.99, 0.25) == pytest.approx(1 - 0.01 * (1 + math.sqrt(0.5)) / 2)
    assert cosine_momentum(0.99, 1) == 1


ENGINE = """
import os
import unittest.mock
from pathlib import Path
import torch
from torch import nn
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.ema import Follower, cosine_momentum
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.objectives.projector import GlobalBatchNorm1d
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, build_optimiser

class Objective(nn.Module):
    views = 1
    def __init__(self):  # one weight of more than 1e5 numbers, which ZeRO 3 keeps in shards alone, of odd size
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(27, 331), nn.ReLU(), nn.Linear(331, 331, bias=False))
        self.encoder.extend((GlobalBatchNorm1d(331), nn.Linear(331, 5)))
        self.encoder[0].requires_grad_(False)
        self.follower = Follower(net=self.encoder)
    def forward(self, batch):
        x = batch.voxels.flatten(1)
        with torch.no_grad():
            target = self.follower.get_submodule("net")(x)
        loss = (self.encoder(x) - target - x[:, :5]).square().mean()
        return loss, {"twice": 2 * loss.detach()}
    def after_step(self, progress):
        self.follower.follow(cosine_momentum(0.5, progress), net=self.encoder)

def batch(step, rows):
    g = torch.Generator().manual_seed(step)
    voxels = torch.randn(4, 1, 3, 3, 3, generator=g)[rows]
    n = len(voxels)
    names = ["mr"] * n
    return Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), torch.arange(n), names, names, names, step)

OPT = OptimiserConfig(lr=1e-2, warmup_steps=0).filled("convolutional")
STEPS = 4
world = join("cpu", 1)
rows = slice(world.rank, 4, world.size)
root = Path(os.environ["TMP_PATH"])
def engine(stage):
    torch.manual_seed(0)
    return Engine(Objective(), OPT, EngineConfig(zero_stage=stage, clip=0.0), world)
def weights(e, name):
    e.save(root / name, {})
    barrier(world)
    return e.weights(root / name)
def step(e, number):
    e.step([(batch(number, rows),)], 1e-2, (number + 1) / STEPS)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_under_deepspeed_it_is_the_plain_average_and_resumes_bit_for_bit(ranks, stage):
    ranks(
        ENGINE
        + f"STAGE = {stage}"
        + """
torch.manual_seed(0)
plain = Objective()  # the whole batch, in this process alone
optimiser = build_optimiser(plain, OPT)
plain_weights = [{k: v.clone().float() for k, v in plain.state_dict().items()}]
alone = unittest.mock.patch.multiple("scanfoundry.pretrain.distributed.collectives", rank_and_size=lambda: (0, 1))
for number in range(STEPS):
    with alone:
        optimiser.zero_grad()
        plain(batch(number, slice(0, 4)))[0].backward()
        optimiser.step()
        plain.after_step((number + 1) / STEPS)
    plain_weights.append({k: v.clone().float() for k, v in plain.state_dict().items()})

e = engine(STAGE)
owned = {id(p) for group in e._engine.optimizer.param_groups for p in group["params"]}
assert not owned & {id(p) for p in e.objective.follower.parameters()}
expected = {k.removeprefix("encoder."): v for k, v in plain_weights[0].items() if k.startswith("encoder.")}
for number in range(STEPS):
    step(e, number)
    now = weights(e, f"step-{number}")
    assert now.keys() == plain_weights[0].keys(), sorted(now.keys() ^ plain_weights[0].keys())
    momentum = cosine_momentum(0.5, (number + 1) / STEPS)
    for name, old in expected.items():
        new = now["encoder." + name]
        expected[name] = new if name.endswith("tracked") else momentum * old + (1 - momentum) * new
        torch.testing.assert_close(now["follower.net." + name], expected[name], rtol=1e-6, atol=1e-7)
    for name, value in plain_weights[number + 1].items():  # in norm: Adam turns rounding of tiny gradients into steps
        moved = (value - plain_weights[0][name]).norm()
        assert (now[name] - value).norm() <= 1e-3 * moved + 1e-6, (name, number)
assert (plain_weights[-1]["follower.net.2.weight"] - plain_weights[0]["follower.net.2.weight"]).norm() > 1

f = engine(STAGE)
f.load(root / "step-1")
for number in range(2, STEPS):
    step(f, number)
resumed = weights(f, "resumed")
assert all(torch.equal(now[name], resumed[name]) for name in now)
""",
        2,
    )
