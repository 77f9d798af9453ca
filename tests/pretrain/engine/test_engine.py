"""The engine against plain PyTorch, at every ZeRO stage and at two ranks."""

import json
import math

import pytest

COMMON = """
import json, os
from pathlib import Path
import torch
from torch import nn
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, build_optimiser

class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv3d(4, 1, 1))
        self.steps = []
    def forward(self, batch):
        errors = (self.encoder(batch.voxels) - batch.seeds.float().mean()).square().flatten(1).mean(1)
        loss = errors.mean()
        return loss, {"twice": 2 * loss.detach(), "error": errors.detach()}
    def after_step(self, progress):
        self.steps.append(progress)

def batch(step, rows):
    g = torch.Generator().manual_seed(step)
    voxels = torch.randn(4, 1, 5, 6, 7, generator=g)[rows]
    n = len(voxels)
    valid, seeds, names = torch.ones_like(voxels, dtype=torch.bool), torch.full((n,), 2), ["mr"] * n
    return Batch(voxels, valid, seeds, names, names, names, step)

OPT = OptimiserConfig(lr=1e-2, warmup_steps=0).filled("convolutional")
world = join("cpu", 1)
def engine(**kw):
    torch.manual_seed(0)
    return Engine(Objective(), OPT, EngineConfig(**kw), world)
def weights(e, folder="w"):
    path = Path(os.environ["TMP_PATH"]) / folder
    e.save(path, {})
    barrier(world)
    return {k: v.clone() for k, v in e.weights(path).items()}
"""


@pytest.mark.parametrize("size", [1, 2])
def test_a_step_equals_plain_adamw_with_accumulation_and_clipping(ranks, size):
    out = ranks(
        COMMON
        + """
for stage in range(4):
    e = engine(zero_stage=stage, accumulation=2, clip=0.5)
    torch.manual_seed(0)
    plain = Objective()
    optimiser = build_optimiser(plain, OPT)
    for step in range(3):
        micro = [batch(step, slice(0, 2)), batch(step, slice(2, 4))]
        record = e.step([(b,) for b in micro], 1e-2)
        optimiser.zero_grad()
        losses = [plain(b)[0] / 2 for b in micro]
        sum(losses).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimiser.step()
        assert abs(record.loss - float(sum(losses))) < 1e-5 * abs(record.loss)
        assert abs(record.metrics["twice"] - 2 * record.loss) < 1e-5
        assert abs(record.metrics["error"] - record.loss) < 1e-5 and e.objective.steps == [0.0] * (step + 1)
        assert record.applied
    mine = weights(e, f"stage{stage}")
    print(max(float((mine[k] - v).abs().max()) for k, v in plain.state_dict().items()))
""",
        size,
    )
    assert len(out.split()) == 4
    assert max(map(float, out.split())) < 1e-6


def test_two_ranks_compute_what_one_computes(ranks):
    code = (
        COMMON
        + """
for stage in (0, 1, 3):
    e = engine(zero_stage=stage)
    for step in range(3):
        record = e.step([(batch(step, slice(world.rank, 4, world.size)),)], 1e-2)
    w = weights(e, f"stage{stage}")
    print(json.dumps([record.loss, *(float(v.double().abs().sum()) for v in w.values())]))
"""
    )
    one, two = (ranks(code, n).splitlines() for n in (1, 2))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert json.loads(a) == pytest.approx(json.loads(b), rel=1e-5)


def test_a_loss_that_is_not_finite_changes_no_weight(ranks):
    ranks(
        COMMON
        + """
for stage in (0, 2):
    e = engine(zero_stage=stage)
    e.step([(batch(0, slice(0, 4)),)], 1e-2, 0.25)
    before = weights(e, "a")
    poisoned = batch(1, slice(0, 4))
    poisoned.voxels[0, 0, 0, 0, 0] = float("nan")
    record = e.step([(poisoned,)], 1e-2, 0.5)
    assert not record.applied and record.loss != record.loss
    assert e.objective.steps == [0.25]
    after = weights(e, "b")
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert e.step([(batch(2, slice(0, 4)),)], 1e-2, 0.75).applied
    assert e.objective.steps == [0.25, 0.75]
    assert not all(torch.equal(before[k], v) for k, v in weights(e, "c").items())
""",
        2,
    )


def test_saved_and_loaded_it_goes_on_bit_for_bit(ranks):
    ranks(
        COMMON
        + """
root = Path(os.environ["TMP_PATH"])
for config in ({"zero_stage": 0}, {"zero_stage": 1, "precision": "bf16"}, {"zero_stage": 3}):
    name = str(config["zero_stage"])
    e = engine(**config)
    for step in range(2):
        e.step([(batch(step, slice(0, 4)),)], 1e-2)
    e.save(root / name, {"note": 1})
    for step in range(2, 4):
        e.step([(batch(step, slice(0, 4)),)], 1e-2)
    straight = weights(e, name + "straight")
    f = engine(**config)
    assert f.load(root / name)["note"] == 1
    for step in range(2, 4):
        f.step([(batch(step, slice(0, 4)),)], 1e-2)
    resumed = weights(f, name + "resumed")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
""",
        2,
    )


@pytest.mark.parametrize("size", [1, 2])
def test_parameters_that_a_step_does_not_use_have_a_gradient_of_zero_at_every_stage(ranks, size):
    """As a 2D head in a 3D step: DeepSpeed's ZeRO 3 alone would take their gradient of the step before once more."""
    out = ranks(
        COMMON
        + """
class Heads(Objective):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(1, 400, bias=False), nn.Linear(1, 400, bias=False)])
    def forward(self, batch):
        out = self.heads[batch.step % 2](self.encoder(batch.voxels).flatten(1).mean(1, keepdim=True))
        return (out - 1).square().mean(), {}

for stage in range(4):
    torch.manual_seed(0)
    e = Engine(Heads(), OPT, EngineConfig(zero_stage=stage, clip=0.0), world)
    torch.manual_seed(0)
    plain = Heads()
    optimiser = build_optimiser(plain, OPT)
    for step in range(4):
        e.step([(batch(step, slice(0, 4)),)], 1e-2)
        optimiser.zero_grad()
        (plain(batch(step, slice(0, 4)))[0] + sum((p * 0).sum() for p in plain.parameters())).backward()
        optimiser.step()
    mine = weights(e, f"stage{stage}")
    print(max(float((mine[k] - v).abs().max()) for k, v in plain.state_dict().items()))
""",
        size,
    )
    assert len(out.split()) == 4
    assert max(map(float, out.split())) < 1e-6


def test_metrics_are_means_over_samples_by_modality_and_over_ranks(ranks):
    """Eight samples in two micro-batches; "xr" is on one rank alone, "pt" nowhere, "us" has no number that counts."""
    code = (
        COMMON
        + """
class Views(Objective):
    def forward(self, first, second):
        loss, _ = super().forward(first)
        each = second.voxels.flatten(1).mean(1)
        metrics = {"each": torch.where(first.seeds > 0, each, torch.nan), "rows": torch.tensor(float(len(first)))}
        return loss, {**metrics, "nothing": torch.tensor(torch.nan), "deep/inf": each * 0 + torch.inf}

KINDS = ["mr", "mr", "us", "mr", "xr", "ct", "ct", "mr"]
def pair(chosen):
    voxels = torch.arange(8.0).view(8, 1, 1, 1, 1).expand(-1, 1, 5, 6, 7)[chosen]
    seeds = torch.tensor([1, 0, 0, 1, 1, 1, 1, 1])[chosen]
    kinds = [KINDS[i] for i in chosen]
    made = [Batch(v, torch.ones_like(v, dtype=torch.bool), seeds, kinds, k, kinds, 0)
            for v, k in ((voxels * 0, kinds), (voxels, ["other"] * len(kinds)))]
    return tuple(made)

e = Engine(Views(), OPT, EngineConfig(accumulation=2), world, ["ct", "mr", "pt", "us", "xr"])
share = 4 // world.size
rows = lambda micro: list(range(4 * micro + share * world.rank, 4 * micro + share * (world.rank + 1)))
record = e.step([pair(rows(0)), pair(rows(1))], 1e-2)
assert record.applied and record.loss == record.loss
print(json.dumps(record.metrics))
"""
    )
    for size in (1, 2):
        metrics = json.loads(ranks(code, size))
        # samples that count: 0, 3, 7 (mr), 4 (xr), 5, 6 (ct)
        expected = {"each": 25 / 6, "each/mr": 10 / 3, "each/xr": 4.0, "each/ct": 5.5, "rows": 4 / size}
        expected |= {f"deep/inf{name}": math.inf for name in ("", "/mr", "/xr", "/ct", "/us")}
        assert math.isnan(metrics.pop("nothing"))
        assert metrics == pytest.approx(expected)
