"""Every objective for a few minutes on real shards of five kinds in one run, images and volumes: does it learn?

command: python benchmarks/objectives.py --shards runs/shards4 --work runs/objectives [--seconds 240] [--only NAME ...]
--shards holds what `scanfoundry data build` made of public data (README.md): hippocampus and tumour (MR), ct, us, xr.
Each run is `scanfoundry pretrain` in a process of its own with one thread, --jobs of them at a time, stopped by SIGTERM
when its time is up. Written down: losses by kind and by modality (means of the first and last 20 steps
of a kind), RankMe and feature deviation at the first and the last look, steps, crops per second.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from record import record

STUNET = {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 4 + [[1, 1, 1]]}
VIT = {"name": "vit", "size": "Ti", "patch_2d": [16, 16], "patch_3d": [8, 8, 8]}
MEDNEXT = {"name": "mednext", "size": "S", "kernel": 3}
SPARK = {"name": "spark", "mask_ratio": 0.6, "block_2d": [16, 16], "block_3d": [16, 16, 16], "target_eps": 1e-4}
MAE = {"name": "mae", "mask_ratio": 0.75, "target_eps": 1e-4}
NT_XENT = {"name": "contrastive", "loss": "nt_xent", "projector_hidden": 512}
BARLOW = {"name": "barlow_twins", "projector_dim": 1024, "projector_hidden": 1024}
STRONG = {"augment": {"preset": "strong"}}
RUNS: dict[str, tuple[dict, dict, dict]] = {  # backbone, objective, data
    "mae": (VIT, MAE, {}),
    "mae_gradient": (VIT, MAE | {"gradient_weight": 0.5}, {}),
    "spark_stunet": (STUNET, SPARK, {}),
    "spark_mednext": (MEDNEXT, SPARK, {"batch_3d": 4, "batch_2d": 16}),
    "nt_xent_crops": (STUNET, NT_XENT, STRONG | {"positives": "crops"}),
    "dclw_views": (STUNET, NT_XENT | {"loss": "dclw"}, STRONG),
    "moco_v3_vit": (VIT, {"name": "contrastive", "loss": "moco_v3", "projector_hidden": 512}, STRONG),
    "barlow_twins_projection": (STUNET, BARLOW, STRONG | {"positives": "projection"}),
    "barlow_twins_mixed": (VIT, BARLOW | {"mixed": 1.0}, STRONG),
    "mae_and_nt_xent": (
        VIT,
        {"name": "sum", "terms": [{"weight": 1.0, "objective": MAE}, {"weight": 0.1, "objective": NT_XENT}]},
        STRONG,
    ),
}


def configuration(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run, as `scanfoundry pretrain` reads it."""
    backbone, objective, data = RUNS[name]
    sources = [{"name": each, "path": str(args.shards / each)} for each in ("hippocampus", "tumour", "ct", "us", "xr")]
    return {
        "run_dir": str(args.work / name), "seed": 0, "steps": args.steps, "backbone": backbone, "objective": objective,
        "data": {
            "sources": sources, "temperature": 0.3, "crop_2d": [128, 128], "crop_3d": [32, 48, 48], "batch_2d": 32,
            "batch_3d": 16, "holdout": 0.25, "workers": 0, **data,
        },
        "optimiser": {"lr": 1e-3, "warmup_steps": 30}, "engine": {"precision": "bf16"},
        "checkpoint_every": 100_000, "monitor_every": args.monitor_every, "monitor_crops": 64,
        "picture_every": args.monitor_every, "threads": 1,
    }  # fmt: skip


def train(name: str, args: argparse.Namespace) -> Path:
    """Run for the time given, from the start."""
    args.work.mkdir(parents=True, exist_ok=True)
    page = args.work / f"{name}.yaml"
    page.write_text(yaml.safe_dump(configuration(name, args)))
    shutil.rmtree(args.work / name, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "scanfoundry"), "pretrain", str(page)]
    process = subprocess.Popen(command, stderr=(args.work / f"{name}.log").open("w"))
    deadline = time.monotonic() + args.seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(1)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(120)
    return args.work / name / "metrics.jsonl"


def summary(metrics: Path) -> dict[str, Any]:
    """What the log of a run says."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    found: dict[str, Any] = {"steps": lines[-1]["step"]}
    found["crops_per_second"] = round(statistics.median(line["samples_per_second"] for line in lines), 1)
    skip = {"step", "lr", "samples_per_second", "data_wait", "memory_gib", "bad_samples", "loss"}
    for kind in ("2d", "3d"):
        of_kind = [line for line in lines if line["kind"] == kind]
        found[f"loss {kind}"] = ends([line["loss"] for line in of_kind])
        names = sorted({name for line in of_kind for name, value in line.items() if isinstance(value, float)} - skip)
        for name in names:
            if "rankme" not in name and "feature_std" not in name:
                found[f"{name} {kind}"] = ends([line[name] for line in of_kind if line.get(name) is not None])
    for name in ("rankme_2d", "rankme_3d", "feature_std_2d", "feature_std_3d"):
        values = [line[name] for line in lines if name in line]
        found[name] = [round(value, 4) for value in values]
    return found


def ends(values: list[float], span: int = 20) -> list[float]:
    """Means of the first and of the last values."""
    span = min(span, max(1, len(values) // 2))
    return [round(statistics.fmean(part), 4) for part in (values[:span], values[-span:])] if values else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--monitor-every", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    args = parser.parse_args()
    results = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for name, metrics in zip(args.only, pool.map(partial(train, args=args), args.only), strict=True):
            results[name] = summary(metrics)
            print(name, json.dumps(results[name], indent=1), flush=True)
    record("objectives", results)


if __name__ == "__main__":
    main()
