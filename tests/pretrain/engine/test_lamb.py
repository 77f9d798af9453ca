"""LAMB against timm's, and cut into shards against whole."""

import json

import pytest
import torch
from torch import nn

from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.pretrain.checkpoint.parameter_shards import ParameterShard
from scanfoundry.pretrain.engine.lamb import Lamb

ensure_torchvision()
from timm.optim.lamb import Lamb as TimmLamb  # noqa: E402


def groups(model):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def make():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.init.zeros_(model[2].weight)  # a norm of zero: its ratio is one
    return model


def test_it_is_timms():
    mine, theirs = make(), make()
    one = Lamb(groups(mine), lr=0.05, betas=(0.9, 0.98))
    other = TimmLamb(groups(theirs), lr=0.05, betas=(0.9, 0.98), max_grad_norm=None)
    for step in range(6):
        x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for model, optimiser in ((mine, one), (theirs, other)):
            optimiser.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimiser.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_flat_tensor_of_several_parameters_steps_as_they_do_alone():
    """The public implementations take the norm of the whole flat tensor, as if it were one parameter."""
    torch.manual_seed(0)
    parts = [nn.Parameter(torch.randn(n)) for n in (6, 1, 30)]
    grads = [torch.randn(n) for n in (6, 1, 30)]
    alone = Lamb(parts, lr=0.1, weight_decay=0.1)
    flat = nn.Parameter(torch.cat([p.detach() for p in parts] + [torch.zeros(3)]))
    together = Lamb([flat], lr=0.1, weight_decay=0.1)
    offsets = (0, 6, 7)
    held = [ParameterShard(str(i), p, 0, len(p), flat, offsets[i]) for i, p in enumerate(parts)]
    together.lay_out(held, {str(i): i for i in range(3)}, lambda values: values)
    naive = nn.Parameter(flat.detach().clone())
    for _ in range(3):
        for p, g in zip(parts, grads, strict=True):
            p.grad = g.clone()
        flat.grad = torch.cat([*grads, torch.zeros(3)])
        alone.step()
        together.step()
    torch.testing.assert_close(flat[:37], torch.cat([p.detach() for p in parts]))
    assert (flat[37:] == 0).all()
    naive.grad = flat.grad
    Lamb([naive], lr=0.1, weight_decay=0.1).step()
    assert not torch.allclose(naive[:6], parts[0])


@pytest.mark.slow
def test_every_stage_at_two_ranks_is_one_process(ranks):
    code = """
import json
import torch
from torch import nn
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
from scanfoundry.datasets.batch import Batch

class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(30, 33), nn.Tanh(), nn.Linear(33, 4001))
    def forward(self, batch):
        return (self.encoder(batch.voxels.flatten(1)) - 1).square().mean(), {}
    def after_step(self, progress):
        pass

world = join("cpu", 1)
chosen = OptimiserConfig(name="lamb", lr=2e-2, warmup_steps=0).filled("convolutional")
for stage in range(4):
    torch.manual_seed(0)
    e = Engine(Objective(), chosen, EngineConfig(zero_stage=stage, clip=0), world)
    losses = []
    for step in range(6):
        voxels = torch.randn(4, 1, 2, 3, 5, generator=torch.Generator().manual_seed(step))[world.rank :: world.size]
        names = ["mr"] * len(voxels)
        b = Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), torch.ones(len(voxels)), names, names, names, 0)
        losses.append(e.step([(b,)], 2e-2, step / 6).loss)
    print(json.dumps(losses))
"""
    rows = [json.loads(line) for size in (1, 2) for line in ranks(code, size).splitlines()]
    assert len(rows) == 8
    assert rows[0][-1] < 0.8 * rows[0][0]
    for row in rows:
        assert row == pytest.approx(rows[0], rel=1e-5)
