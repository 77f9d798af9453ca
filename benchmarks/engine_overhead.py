"""A step of the engine against a plain PyTorch loop of the same objective, at one process; and how long a start takes.

command: python benchmarks/engine_overhead.py [--rounds 7] [--stages 0 1 2 3] [--cpu-time] [--shards FOLDER]

The plain loop is what one would write without any framework: forward, backward, clip_grad_norm_, AdamW, and reading
the loss. Both start from the same weights, see the same batches and must give the same losses; they take turns, and
the ratio is the median of the rounds' own ratios. With --shards, `scanfoundry pretrain` is started for one step, twice:
the time from the command to the first logged step, first and later.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import record
from torch import nn

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import World, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, build_optimiser, learning_rate
from scanfoundry.pretrain.objectives import Objective
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.spark import SparkConfig

CASES = {
    "spark STU-Net-S 64^3": ((2, 64, 64, 64), lambda: SparkConfig().build(build(STUNetConfig(size="S")))),
    "mae ViT-S 224^2": ((16, 1, 224, 224), lambda: MAEConfig().build(build(ViTConfig(size="S")))),
    "mae ViT-Ti 64^2": ((4, 1, 64, 64), lambda: MAEConfig().build(build(ViTConfig(size="Ti")))),
}
OPTIMISER = OptimiserConfig(lr=1e-4, warmup_steps=0)


def make_batch(shape: tuple[int, ...], step: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(step)
    voxels = torch.randn(shape[0], 1, *shape[1:], generator=generator).to(device)
    names = ["mr"] * shape[0]
    seeds = torch.arange(shape[0]) + 1000 * step
    return Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), seeds, names, names, names, step)


def plain_step(objective: Objective, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss, _ = objective(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def timed(step: Callable[[], float], device: torch.device, clock: Callable[[], float]) -> tuple[float, float]:
    started = clock()
    loss = step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started, loss


def compare(name: str, stage: int, rounds: int, world: World, clock: Callable[[], float]) -> dict[str, Any]:
    shape, make = CASES[name]
    family = "convolutional" if "STU" in name else "transformer"
    config = OPTIMISER.filled(family)
    torch.manual_seed(0)
    plain = make().to(world.device)
    optimiser = build_optimiser(plain, config)
    torch.manual_seed(0)
    engine = Engine(make(), config, EngineConfig(zero_stage=stage), world, ["mr"])
    lr, ours, theirs = learning_rate(0, 100, config), [], []
    for step in range(rounds + 2):  # two of them to warm up
        batch = make_batch(shape, step, world.device)
        sides = [
            lambda batch=batch: plain_step(plain, optimiser, batch),
            lambda batch=batch: engine.step([(batch,)], lr).loss,
        ]
        order = (0, 1) if step % 2 else (1, 0)
        times, losses = [0.0, 0.0], [0.0, 0.0]
        for side in order:
            times[side], losses[side] = timed(sides[side], world.device, clock)
        assert abs(losses[0] - losses[1]) < 1e-4 * abs(losses[0]), (losses, step)
        theirs.append(times[0])
        ours.append(times[1])
    ratio = median(mine / peer for mine, peer in zip(ours[2:], theirs[2:], strict=True))
    found = {"plain_ms": median(theirs[2:]) * 1e3, "engine_ms": median(ours[2:]) * 1e3, "ratio": ratio}
    print(name, f"ZeRO {stage}", {key: round(value, 4) for key, value in found.items()}, flush=True)
    return found


def starts(shards: Path) -> list[float]:
    """Seconds from `scanfoundry pretrain` to its first logged step, in a fresh process each."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            run = Path(folder) / str(number)
            words = [f"run_dir={run}", f"data.sources.0.path={shards}", "steps=1", "optimiser.warmup_steps=0"]
            words += ["monitor_crops=0", "data.crop_3d=[32,32,32]", "data.batch_3d=1", "objective.block_3d=[16,16,16]"]
            command = [str(Path(sys.executable).parent / "scanfoundry"), "pretrain", "spark_stunet_volumes", *words]
            started = time.time()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
                if process.poll() not in (None, 0):
                    raise SystemExit(process.communicate()[1])
                time.sleep(0.02)
            seconds.append(round(time.time() - started, 2))
            process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-time", action="store_true", help="One thread's CPU time: on a machine that is shared.")
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--out", default="engine_overhead")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    if arguments.shards:
        result["seconds_to_first_step"] = starts(arguments.shards)
        print(result)
    world = join(arguments.device, 1 if arguments.cpu_time else None)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    for name in arguments.cases:
        result[name] = {f"zero{s}": compare(name, s, arguments.rounds, world, clock) for s in arguments.stages}
    record(arguments.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
