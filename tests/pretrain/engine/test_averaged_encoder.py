"""The averaged encoder against an average in float64 of the weights recorded at each step, at every ZeRO stage."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import warm
import yaml
from safetensors.torch import load_file

from scanfoundry.backbones.models.release import load_encoder, load_release
from scanfoundry.pretrain.engine.averaged_encoder import EmaConfig


def test_the_momentum_warms_up_to_its_end():
    config = EmaConfig(momentum=0.9)
    assert [config.at(t) for t in (0, 1, 8, 79, 80, 81, 10**6)] == [
        0.1, 2 / 11, 9 / 18, 80 / 89, 0.9, 0.9, 0.9,
    ]  # fmt: skip
    assert EmaConfig().at(10**6) == 0.9999


ENGINE = """
import os
from pathlib import Path
import torch
from torch import nn
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.engine.averaged_encoder import EmaConfig, add_average, encoder_of, move_average
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.objectives.projector import GlobalBatchNorm1d
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig

class Objective(nn.Module):
    views = 1
    def __init__(self):  # one weight of more than 1e5 numbers, which ZeRO 3 keeps in shards alone, of odd size
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(27, 331), nn.ReLU(), nn.Linear(331, 331, bias=False))
        self.encoder.extend((GlobalBatchNorm1d(331), nn.Linear(331, 5)))
        self.encoder[0].requires_grad_(False)
    def forward(self, batch):
        x = batch.voxels.flatten(1)
        return (self.encoder(x) - x[:, :5]).square().mean(), {}
    def after_step(self, progress):
        pass
    def trained_parts(self):
        return {"encoder": "encoder"}

def batch(step):
    g = torch.Generator().manual_seed(step)
    voxels = torch.randn(4, 1, 3, 3, 3, generator=g)[world.rank::world.size]
    if step == BAD and world.rank == 0:
        voxels = voxels * torch.nan
    n = len(voxels)
    names = ["mr"] * n
    return Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), torch.arange(n), names, names, names, step)

EMA, STEPS, BAD = EmaConfig(momentum=0.4), 6, 3
world = join("cpu", 1)
root = Path(os.environ["TMP_PATH"])
def engine(stage, precision):
    torch.manual_seed(0)
    objective = Objective()
    before = torch.get_rng_state()
    add_average(objective, EMA)
    assert torch.equal(before, torch.get_rng_state())
    optimiser = OptimiserConfig(lr=1e-2, warmup_steps=0).filled("convolutional")
    return Engine(objective, optimiser, EngineConfig(zero_stage=stage, precision=precision), world)
def step(e, number):  # as the loop does
    record = e.step([(batch(number),)], 1e-2)
    assert record.applied == (number != BAD)
    if record.applied:
        move_average(e.objective)
def weights(e, name):
    e.save(root / name, {})
    barrier(world)
    return {k: v.clone() for k, v in e.weights(root / name).items()}
"""

PLAIN_AVERAGE = """
e = engine(STAGE, PRECISION)
owned = {id(p) for group in e._engine.optimizer.param_groups for p in group["params"]}
assert not owned & {id(p) for p in e.objective.averaged.parameters()}
now = weights(e, "start")
reference = {k.removeprefix("encoder."): v.double() for k, v in now.items() if k.startswith("encoder.")}
start, applied = {k: v.clone() for k, v in reference.items()}, 0
for number in range(STEPS):
    step(e, number)
    now = weights(e, f"step-{number}")
    if number != BAD:
        momentum = min(0.4, (1 + applied) / (10 + applied))
        applied += 1
        for name, old in reference.items():
            new = now["encoder." + name].double()
            reference[name] = new if name.endswith("tracked") else momentum * old + (1 - momentum) * new
    for name, value in reference.items():
        torch.testing.assert_close(now["averaged.encoder." + name].double(), value, rtol=1e-6, atol=1e-7)
    assert now["averaged.updates"] == applied
assert (reference["2.weight"] - start["2.weight"]).norm() > 1
assert not torch.equal(reference["3.running_mean"], start["3.running_mean"])
torch.testing.assert_close(reference["0.weight"], start["0.weight"])

f = engine(STAGE, PRECISION)
f.load(root / "step-1")
for number in range(2, STEPS):
    step(f, number)
resumed = weights(f, "resumed")
assert all(torch.equal(now[name], resumed[name]) for name in now)

f.evaluate()  # whole in a forward pass of its own, as the probes run it
x = torch.randn(6, 27, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    given = encoder_of(f.objective)(x)
plain = Objective().encoder.eval()
plain.load_state_dict({k.removeprefix("averaged.encoder."): v for k, v in now.items() if "averaged.encoder." in k})
torch.testing.assert_close(given, plain(x), rtol=1e-4, atol=1e-5)
f.train()
step(f, STEPS)
step(e, STEPS)
one, other = weights(e, "one"), weights(f, "other")
assert all(torch.equal(one[name], other[name]) for name in one)  # and the pass changed nothing
if world.is_main:
    moved = {name: value - start[name] for name, value in reference.items()}
    torch.save((reference, moved), root / f"average-{world.size}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")])
def test_it_is_the_plain_average_at_any_stage_and_world_size_and_resumes_bit_for_bit(ranks, tmp_path, stage, precision):
    code = ENGINE + f"STAGE, PRECISION = {stage}, {precision!r}\n" + PLAIN_AVERAGE
    for size in (1, 2):
        ranks(code, size)
    (one, moved), (two, _) = (torch.load(tmp_path / f"average-{size}.pt") for size in (1, 2))
    share = 1e-3 if precision == "fp32" else 0.1  # Adam turns the rounding of tiny gradients into steps
    for name, value in one.items():
        assert (two[name] - value).norm() <= share * moved[name].norm() + 1e-6, name


def content(shards: dict[str, Path], run_dir: Path, **changes) -> dict:
    return {
        "run_dir": str(run_dir), "seed": 3, "steps": 8, "checkpoint_every": 2, "threads": 1, "monitor_crops": 0,
        "backbone": {"name": "vit", "size": "Ti", "patch_2d": [8, 8], "patch_3d": [4, 8, 8]},
        "objective": {"name": "mae", "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2},
        "data": {
            "sources": [{"name": name, "path": str(path)} for name, path in shards.items()],
            "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 4, "batch_3d": 2, "workers": 0,
        },
        "optimiser": {"lr": 1e-3, "warmup_steps": 2},
    } | changes  # fmt: skip


def start(path: Path, given: dict) -> warm.Popen:
    path.write_text(yaml.safe_dump(given))
    return warm.Popen([warm.SCANFOUNDRY, "pretrain", str(path)], stderr=subprocess.PIPE, text=True)


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_releases_the_average_survives_a_kill_and_computes_the_same_losses(tmp_path, tiny_shards, shallow_vit):
    ema = {"ema": {"momentum": 0.5}}
    runs = {name: content(tiny_shards, tmp_path / name, **ema) for name in ("straight", "killed")}
    runs["plain"] = content(tiny_shards, tmp_path / "plain")
    killed = start(tmp_path / "killed.yaml", runs["killed"])
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for name, given in runs.items():
        process = start(tmp_path / f"{name}.yaml", given)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed") == losses(tmp_path / "plain")
    one, other, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one.keys() == plain.keys()
    assert not torch.equal(one["encoder.blocks.0.attn.qkv.weight"], plain["encoder.blocks.0.attn.qkv.weight"])
    assert load_release(tmp_path / "straight").info.averaged == 0.5
    assert load_encoder(tmp_path / "plain")[1].averaged is None

    refused = start(tmp_path / "killed.yaml", runs["killed"] | {"ema": {"momentum": 0.6}})
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "ema.momentum=0.5, not 0.6" in errors
