"""A step that the device finds to be bad changes nothing, where the host does not know."""

import copy

import pytest
import torch
from torch import nn

from scanfoundry.pretrain.ema import Follower, ema_update, unless
from scanfoundry.pretrain.engine.averaged_encoder import AveragedEncoder, EmaConfig
from scanfoundry.pretrain.engine.lamb import Lamb
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, build_optimiser


class OnDevice(Lamb):
    """As on a GPU, where the host does not look at `skip`."""

    def _on_host(self):
        return False


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() == 1]


def take(optimiser, model, number, bad):
    optimiser.zero_grad()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(number))
    loss = (model(x) - 1).square().mean() * (torch.nan if bad else 1)
    loss.backward()
    optimiser.skip = (~loss.isfinite()).float()
    optimiser.step()


@pytest.mark.parametrize("bad", [0, 2], ids=["first", "third"])
def test_lamb_on_a_device_steps_as_on_the_host_and_leaves_out_the_bad_one(bad):
    states = []
    for kind in (Lamb, OnDevice):
        model, matrices, vectors = make()
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        optimiser = kind(groups, lr=0.05)
        for number in range(5):
            before = copy.deepcopy([model.state_dict(), [dict(s) for s in optimiser.state.values()]])
            take(optimiser, model, number, number == bad)
            if number == bad:
                for name, value in before[0].items():
                    assert torch.equal(value, model.state_dict()[name])
                for old, new in zip(before[1], optimiser.state.values(), strict=False):
                    assert all(torch.equal(old[key], new[key]) for key in old)
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_bad_step_changes_neither_weights_nor_what_the_optimiser_notes(name, fused):
    model = make()[0]
    config = OptimiserConfig(name=name, lr=0.05).filled("convolutional")
    optimiser = build_optimiser(model, config, fused)
    assert all(bool(group["fused"]) == fused for group in optimiser.param_groups)
    for number in range(3):
        take(optimiser, model, number, bad=False)
    before = copy.deepcopy([model.state_dict(), [dict(state) for state in optimiser.state.values()]])
    take(optimiser, model, 3, bad=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before[0].items())
    for old, new in zip(before[1], optimiser.state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    take(optimiser, model, 4, bad=False)
    assert not torch.equal(before[0]["0.weight"], model.state_dict()["0.weight"])


def test_fused_kernels_compute_the_same_up_to_rounding():
    found = []
    for fused in (False, True):
        model = make()[0]
        optimiser = build_optimiser(model, OptimiserConfig(lr=0.05).filled("convolutional"), fused)
        for number in range(4):
            take(optimiser, model, number, bad=False)
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
def test_what_follows_the_weights_stays_where_the_device_says_so(skip):
    leader = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    follower = Follower(leader=leader)
    with torch.no_grad():
        for value in (*leader.parameters(), *leader.buffers()):
            value.add_(3)
    before = {name: value.clone() for name, value in follower.state_dict().items()}
    expected = copy.deepcopy(follower)
    if not skip:
        ema_update(expected.get_submodule("leader"), leader, 0.9)
    with unless(torch.tensor(skip)):
        follower.follow(0.9, leader=leader)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(follower.state_dict()[name], value, rtol=1e-6, atol=1e-7)
        assert torch.equal(follower.state_dict()[name], before[name]) == skip


def test_a_device_computes_the_momentum_of_the_average_as_the_host_does():
    model = nn.Linear(4, 4)
    config = EmaConfig(momentum=0.5)
    host, device = (AveragedEncoder(config, {"encoder": model}) for _ in range(2))
    for step in range(6):
        with torch.no_grad():
            model.weight.add_(1)
        host.move({"encoder": model})
        count = device.updates.double()
        assert float(device.momentum(count)) == config.at(step)
        device.follow(device.momentum(count), encoder=model)
        device.updates += 1
    torch.testing.assert_close(host.get_submodule("encoder").weight, device.get_submodule("encoder").weight)
