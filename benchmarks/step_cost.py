"""What a step costs beside plain PyTorch, now and at an older commit, in turns; and the tables of SparK's halos.

command: python benchmarks/step_cost.py --before FOLDER [--rounds 5]

FOLDER is a checkout of the older commit (`git worktree add FOLDER COMMIT`). Each side is a process that waits for its
turn; a turn is one step of the engine and one of a plain loop, on the same weights and the same batch, in CPU seconds
of one thread. Losses of both sides and of both loops must be the same bits. What should move: SparK's tables to a
third of their time; the engine's overhead down a little, since a step has fewer collectives, and never up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "backbones", "datasets", "pretrain", "finetune", "launch")
STEPS_BEFORE = 2  # that warm a case up


def serve(rounds: int) -> None:
    """One side: measure a case for each line that arrives."""
    import torch
    from engine_overhead import CASES, OPTIMISER, make_batch, plain_step

    from scanfoundry.pretrain.distributed.world import join
    from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
    from scanfoundry.pretrain.engine.optimiser import build_optimiser
    from scanfoundry.pretrain.masking import block_mask
    from scanfoundry.pretrain.sparse.blocks import ActiveBlocks

    world = join("cpu", 1)
    print("ready", flush=True)
    for name in map(str.strip, sys.stdin):
        if name == "tables":
            visible, seconds = ~block_mask(torch.arange(4), (4, 4, 4), 0.6), []
            for _ in range(rounds):
                began = time.process_time()
                blocks = ActiveBlocks(visible)
                for side in (32, 16, 8, 4, 2, 1):
                    blocks.halo((side, side, side), (1, 1, 1))
                seconds.append(time.process_time() - began)
            print(json.dumps({"ms": median(seconds) * 1e3}), flush=True)
            continue
        shape, make = CASES[name]
        config = OPTIMISER.filled("convolutional" if "STU" in name else "transformer")
        torch.manual_seed(0)
        plain = make()
        optimiser = build_optimiser(plain, config)
        torch.manual_seed(0)
        engine = Engine(make(), config, EngineConfig(), world, ["mr"])
        for step in range(rounds + STEPS_BEFORE):
            batch = make_batch(shape, step, world.device)
            began = time.process_time()
            loss = engine.step([(batch,)], 1e-4).loss
            middle = time.process_time()
            expected = plain_step(plain, optimiser, batch)
            ours, theirs = middle - began, time.process_time() - middle
            assert abs(loss - expected) < 1e-4 * abs(expected)
            print(json.dumps({"ours": ours, "plain": theirs, "loss": loss}), flush=True)
            sys.stdin.readline()  # the other side's turn


def start(folder: Path, names: Path, rounds: int) -> "subprocess.Popen[str]":
    """A process of one side, whose packages are those of `folder`."""
    root = names / folder.name / "scanfoundry"
    root.mkdir(parents=True)
    for package in PACKAGES:
        (root / package).symlink_to(folder.resolve() / package)
    environment = os.environ | {"PYTHONPATH": f"{root.parent}:{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(Path(__file__).resolve()), "--serve", "--rounds", str(rounds)]
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()


def answer(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit("a side ended early")


def compare(sides: "dict[str, subprocess.Popen[str]]", name: str, rounds: int) -> dict[str, Any]:
    """A case on all sides, in turns."""
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for each in sides.values():
        tell(each, name)
    for step in range(rounds + STEPS_BEFORE):
        for side, each in sides.items():
            turns[side].append(answer(each))
        assert len({found[step]["loss"] for found in turns.values()}) == 1, "the losses are not the same bits"
        for each in sides.values():
            tell(each, "go")
    return {
        side: {
            "plain_ms": median(each["plain"] for each in found[STEPS_BEFORE:]) * 1e3,
            "engine_ms": median(each["ours"] for each in found[STEPS_BEFORE:]) * 1e3,
            "ratio": median(each["ours"] / each["plain"] for each in found[STEPS_BEFORE:]),
        }
        for side, found in turns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=["mae ViT-Ti 64^2", "spark STU-Net-S 64^3"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.rounds)
    from record import record

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as names:
        folders = {"before": arguments.before, "now": ROOT}
        sides = {side: start(folder, Path(names) / side, arguments.rounds) for side, folder in folders.items()}
        for name in arguments.cases:
            result[name] = compare(sides, name, arguments.rounds)
            print(name, result[name], flush=True)
        for each in sides.values():
            tell(each, "tables")
        result["tables of 4 crops of 128^3"] = {side: answer(each) for side, each in sides.items()}
        for each in sides.values():
            each.kill()
    record("step_cost", result)


if __name__ == "__main__":
    main()
