"""One run continued with other numbers of processes, against one that was left alone.

command: python benchmarks/world_sizes.py --shards FOLDER [--cases mae spark_sgd] [--stages 0 1 2 3] [--sizes 2 1 4 2]

For every ZeRO stage the run goes through `sizes`: it is stopped by SIGTERM on one rank and continued with the next
number of processes. The uninterrupted run has `sizes[0]` processes at the same stage. Reported: the largest relative
difference of a step's loss, and whether the keys of the crops, gathered from loaders at the positions in which each
part of the run began, are those of a single reader, each once.

The environment variable VIT_BLOCKS gives the ViT of `mae_tiny` another depth, for a quick look.

SparK is run with SGD, whose steps are as exact as the gradients, and with AdamW, which at the start of a run divides
gradients that are little more than rounding by their own size.
"""

import argparse
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from record import record

from scanfoundry.backbones import vit
from scanfoundry.configs.loading import check
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position
from scanfoundry.launch.cli.main import main as main_of_scanfoundry

# The ranks of a run are forked from a process that has loaded what they need: most of the time of so few steps.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    # monai_parts makes torchvision loadable, which timm imports
    [
        "deepspeed",
        "scanfoundry.pretrain.training.loop",
        "scanfoundry.finetune.monai_parts",
        "timm.models.vision_transformer",
    ]
)
STUNET = {
    "backbone": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 3 + [[1, 1, 1]] * 2},
    "objective": {"name": "spark", "block_3d": [8, 8, 8]},
}
ADAMW, SGD = {"lr": 3e-4, "warmup_steps": 4}, {"name": "sgd", "lr": 1e-2, "warmup_steps": 4}
CASES: dict[str, dict[str, Any]] = {
    "mae": {
        "backbone": {"name": "vit", "size": "S", "patch_3d": [8, 8, 8]},
        "objective": {"name": "mae"},
        "optimiser": ADAMW,
    },
    "mae_tiny": {
        "backbone": {"name": "vit", "size": "Ti", "patch_3d": [8, 8, 8]},
        "objective": {"name": "mae", "decoder_depth": 2},
        "optimiser": ADAMW,
    },
    "spark_sgd": {**STUNET, "optimiser": SGD},
    "spark_tiny": {
        "backbone": {"name": "resenc", "features": [8, 16, 32], "blocks": [1, 1, 1], "strides": [[2, 2, 2]] * 2},
        "objective": {"name": "spark", "block_3d": [8, 8, 8], "decoder_width": 32},
        "optimiser": SGD,
    },
    "spark_adamw": {**STUNET, "optimiser": ADAMW},
}


def content(case: str, shards: Path, run_dir: Path, stage: int, steps: int, crop: int) -> dict[str, Any]:
    sources = [{"name": "mr", "path": str(shards)}]
    return CASES[case] | {
        "run_dir": str(run_dir), "seed": 5, "steps": steps, "checkpoint_every": 1000, "threads": 1, "monitor_crops": 0,
        "data": {"sources": sources, "crop_3d": [crop] * 3, "batch_3d": 8, "workers": 0, "steps_per_epoch": 1000},
        "engine": {"zero_stage": stage},
    }  # fmt: skip


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def part(path: Path, run_dir: Path, size: int, until: int | None) -> None:
    """Run with `size` processes; at step `until` one of them gets SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(size):
        env = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "VIT_BLOCKS": os.environ.get("VIT_BLOCKS", ""),
        }  # fmt: skip
        ranks.append(FORKS.Process(target=pretrain, args=(path, env)))
        ranks[-1].start()
    if until is not None:
        while len(lines(run_dir)) < until and all(each.is_alive() for each in ranks):
            time.sleep(0.02)
        ranks[-1].terminate()  # SIGTERM
    for each in ranks:
        each.join()
        if each.exitcode not in ((0,) if until is None else (128 + signal.SIGTERM,)):
            raise SystemExit(f"exit code {each.exitcode}")


def pretrain(path: Path, env: dict[str, str]) -> None:
    """`scanfoundry pretrain` in this process, which must be a new one."""
    os.environ.update(env)
    if env["VIT_BLOCKS"]:
        width, _, heads = vit.WIDTH_DEPTH_HEADS["Ti"]
        vit.WIDTH_DEPTH_HEADS["Ti"] = (width, int(env["VIT_BLOCKS"]), heads)
    os.dup2(2, 1)  # the results are what is printed
    sys.argv = ["scanfoundry", "pretrain", str(path)]
    main_of_scanfoundry()


def keys(data: DataConfig, seed: int, size: int, start: int, stop: int) -> list[list[str]]:
    """Of each step, the keys of all ranks' crops."""
    found: list[list[str]] = [[] for _ in range(start, stop)]
    for rank in range(size):
        with CropLoader(data, seed, rank, size, 1, Position(0, start)) as loader:
            for row, batch in zip(found, islice(loader, stop - start), strict=True):
                row += batch.keys
    return [sorted(row) for row in found]


def compare(
    case: str, shards: Path, stage: int, sizes: list[int], each: int, crop: int, folder: Path
) -> dict[str, Any]:
    steps = each * len(sizes)
    paths = {name: folder / f"{case}{stage}{name}.yaml" for name in ("straight", "changed")}
    runs = {name: folder / f"{case}{stage}{name}" for name in paths}
    for name, path in paths.items():
        path.write_text(yaml.safe_dump(content(case, shards, runs[name], stage, steps, crop)))
    part(paths["straight"], runs["straight"], sizes[0], None)
    stopped = []
    for number, size in enumerate(sizes):
        part(paths["changed"], runs["changed"], size, each * (number + 1) - 1 if number + 1 < len(sizes) else None)
        stopped.append(lines(runs["changed"])[-1]["step"])
    one, other = (lines(runs[name]) for name in ("straight", "changed"))
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, steps + 1))
    differences = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, other, strict=True)]
    data = check(DataConfig, content(case, shards, folder, stage, steps, crop)["data"], "data")
    seen, begin = [], 0
    for size, end in zip(sizes, stopped, strict=True):
        seen += keys(data, 5, size, begin, end)
        begin = end
    return {
        "stopped_after": stopped, "largest_relative_difference": max(differences),
        "same_world_size_identical": differences[: stopped[0]] == [0.0] * stopped[0],
        "crops_the_same": seen == keys(data, 5, 1, 0, steps), "crops": sum(map(len, seen)),
        "losses": [line["loss"] for line in other],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["mae", "spark_sgd", "spark_adamw"])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 1, 4, 2])
    parser.add_argument("--each", type=int, default=6, help="Steps between the changes.")
    parser.add_argument("--crop", type=int, default=32, help="Voxels of a crop along each axis.")
    parser.add_argument("--out", default="world_sizes", help="Name of the result; empty: only printed.")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"sizes": arguments.sizes}
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.cases:
            for stage in arguments.stages:
                words = (stage, arguments.sizes, arguments.each, arguments.crop, Path(folder))
                found = compare(case, arguments.shards.resolve(), *words)
                result[f"{case} ZeRO {stage}"] = found
                print(json.dumps({"case": case, "stage": stage, **found}), flush=True)
    if arguments.out:
        record(arguments.out, result)


if __name__ == "__main__":
    main()
