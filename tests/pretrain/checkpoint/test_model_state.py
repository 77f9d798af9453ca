"""A saved state goes on at any ZeRO stage and world size: the same numbers, whoever wrote them."""

import json

import pytest

COMMON = """
import json, os
from pathlib import Path
import torch
from torch import nn
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.ema import Follower
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
from scanfoundry.pretrain.checkpoint.state_files import StateFiles

class Objective(nn.Module):
    # Parameters larger than ZeRO 3 keeps whole, odd sizes, fewer elements than ranks, frozen ones, buffers.
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, 5, 3), nn.GroupNorm(5, 5), nn.Conv3d(5, 7, 3, padding=1))
        self.head = nn.Linear(7, 20011, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.behind = Follower(encoder=self.encoder)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
    def forward(self, batch):
        pooled = self.encoder(batch.voxels).mean((2, 3, 4))
        loss = (self.head(pooled) * self.scale - batch.seeds.float().mean()).square().mean()
        return loss, {}
    def after_step(self, progress):
        self.behind.follow(0.9, encoder=self.encoder)
        self.seen += 1

def batch(step, rows):
    g = torch.Generator().manual_seed(step)
    voxels = torch.randn(4, 1, 5, 6, 7, generator=g)[rows]
    n = len(voxels)
    valid, seeds, names = torch.ones_like(voxels, dtype=torch.bool), torch.full((n,), 2), ["mr"] * n
    return Batch(voxels, valid, seeds, names, names, names, step)

world = join("cpu", 1)
ROOT = Path(os.environ["TMP_PATH"])
def engine(optimiser="adamw", **kw):
    torch.manual_seed(0)
    chosen = OptimiserConfig(name=optimiser, lr=1e-3, warmup_steps=0).filled("convolutional")
    return Engine(Objective(), chosen, EngineConfig(**kw), world)
def steps(e, first, last):
    return [e.step([(batch(s, slice(world.rank, 4, world.size)),)], 1e-3, s / 10).loss for s in range(first, last)]
def save(e, name):
    e.save(ROOT / name, {"name": name})
    barrier(world)
def content(name):
    with StateFiles(ROOT / name) as files:
        found = {"weight/" + k: v for k, v in files.weights().items()}
        for kind in files.kinds():
            for key, shape in files.state["parameters"].items():
                if not key.startswith("behind"):
                    found[f"{kind}/{key}"] = torch.empty(shape)
                    files.read(kind, key, 0, found[f"{kind}/{key}"].numel(), found[f"{kind}/{key}"].view(-1))
        return found, files.state["optimiser"]
def same(one, other):
    (a, x), (b, y) = content(one), content(other)
    assert a.keys() == b.keys() and x == y
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]
"""

WRITE = """
for stage in range(4):
    e = engine(zero_stage=stage)
    steps(e, 0, 3)
    save(e, f"stage{stage}")
    print(json.dumps(steps(e, 3, 6)))
    save(e, f"later{stage}")
"""

READ = """
for written in range(4):
    for stage in STAGES:
        e = engine(zero_stage=stage)
        steps(e, 7, 8)  # what was there before must not matter
        assert e.load(ROOT / f"stage{written}") == {"name": f"stage{written}"}
        save(e, f"again{written}{stage}")
        same(f"stage{written}", f"again{written}{stage}")
        print(json.dumps(steps(e, 3, 6)))
        if (written, world.size) == (stage, 2):
            save(e, f"resumed{stage}")
            same(f"later{stage}", f"resumed{stage}")
"""


@pytest.mark.slow
def test_any_stage_and_world_size_reads_what_any_other_wrote(ranks):
    straight = [json.loads(line) for line in ranks(COMMON + WRITE, 2).splitlines()]
    for row in straight:
        assert row == pytest.approx(straight[0], rel=1e-6)
    for size, stages in ((2, (0, 1, 2, 3)), (1, (0, 3)), (4, (1, 3))):
        rows = ranks(COMMON + f"STAGES = {stages}\n" + READ, size).splitlines()
        assert len(rows) == 4 * len(stages)
        for row in rows:
            assert json.loads(row) == pytest.approx(straight[0], rel=1e-6)


def test_other_optimisers_offload_and_bf16_go_on_bit_for_bit(ranks):
    ranks(
        COMMON
        + """
for number, (name, config) in enumerate([
    ("lamb", dict(zero_stage=2)), ("lamb", dict(zero_stage=3)),
    ("sgd", dict(zero_stage=0)), ("sgd", dict(zero_stage=3)),
    ("adamw", dict(zero_stage=1, offload=True)), ("adamw", dict(zero_stage=2, offload=True)),
    ("adamw", dict(zero_stage=3, offload=True)), ("adamw", dict(zero_stage=0, precision="bf16")),
    ("lamb", dict(zero_stage=3, precision="bf16", offload=True)),
]):
    e = engine(name, **config)
    steps(e, 0, 2)
    save(e, f"mark{number}")
    steps(e, 2, 4)
    save(e, f"straight{number}")
    f = engine(name, **config)
    f.load(ROOT / f"mark{number}")
    steps(f, 2, 4)
    save(f, f"resumed{number}")
    same(f"straight{number}", f"resumed{number}")
    assert content(f"straight{number}")[0]["weight/seen"] == 4
""",
        2,
    )


def test_offload_computes_what_no_offload_does(ranks):
    out = ranks(
        COMMON
        + """
for stage in (1, 2, 3):
    for offload in (False, True):
        e = engine(zero_stage=stage, offload=offload, clip=0.1, accumulation=2)
        micro = [(batch(0, slice(world.rank, 4, 2)),), (batch(1, slice(world.rank, 4, 2)),)]
        print(json.dumps([e.step(micro, 1e-3).loss for _ in range(4)]))
""",
        2,
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 6
    for row in rows:
        assert row == pytest.approx(rows[0], rel=1e-6)


def test_a_state_of_another_model_is_refused(ranks):
    ranks(
        COMMON
        + """
e = engine()
save(e, "state")
e.objective.head = nn.Linear(7, 20012, bias=False)
try:
    e.load(ROOT / "state")
except RuntimeError as error:
    assert "head.weight is [20011, 7]" in str(error), error
else:
    raise SystemExit("not refused")
"""
    )
