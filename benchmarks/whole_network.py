"""Is a pre-trained decoder worth something? Left atrium, few labels: scratch, encoder, encoder and decoder.

command: python benchmarks/whole_network.py DATA WORK [--steps 4500] [--processes 2]
DATA holds left_atrium_mr, msd_task04_hippocampus and acdc_cardiac_mr with their images. What is finished in WORK is not
done again. A residual U-Net is pre-trained whole by `mae` on all volumes but those of the patients that are tested on.
Each arm is trained at three rates on the first labelled subset of each size. Its rate is chosen, by number of labels,
on validation patients. At that rate the other subsets are trained, and only then are these models tested.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from record import record

from scanfoundry.datasets.identity import fraction
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats.discover import known_cases
from scanfoundry.finetune.metrics.intervals import difference, interval
from scanfoundry.finetune.metrics.weighted import Record, mean_of
from scanfoundry.finetune.model_file import load_model

SCANFOUNDRY = str(Path(sys.executable).parent / "scanfoundry")
POOLS = {"left_atrium": "left_atrium_mr", "hippocampus": "msd_task04_hippocampus", "cardiac": "acdc_cardiac_mr"}
PATIENTS = {"cardiac": "(patient\\d+)"}
BACKBONE = {"name": "resenc", "features": [16, 32, 64, 128], "blocks": [1, 2, 2, 2], "strides": [[2, 2, 2]] * 3}
CROP, BATCH = [32, 48, 48], 4  # (D, H, W)
TEST, VALIDATION = 0.25, 0.4  # patients below the first are tested on, those between choose the rate
ARMS = {"scratch": [], "encoder": ["encoder"], "encoder and decoder": ["encoder", "decoder"]}
RATES = {"scratch": (3e-3, 1e-3, 3e-4), "encoder": (3e-3, 1e-3, 3e-4), "encoder and decoder": (3e-3, 1e-3, 3e-4)}
SHOTS, SEEDS, STEPS = (2, 5), (0, 1, 2), 300  # of the seeds, the first chooses the rate


def main() -> None:
    """Build, pre-train, choose, test, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4500, help="of the pre-training; at most an hour of 2 cores")
    parser.add_argument("--threads", type=int, default=2, help="of the pre-training")
    parser.add_argument("--processes", type=int, default=2, help="of the studies, one thread each")
    parser.add_argument("--name", default="whole_network")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    start = pretrain(given.data, given.work, given.steps, given.threads)
    tested_on = write_split(given.data / POOLS["left_atrium"], given.work)
    starts = {arm: None if arm == "scratch" else start for arm in ARMS}
    chosen = {
        (arm, shots): choose(
            [study(given, starts[arm], arm, rate, shots, SEEDS[:1]) for rate in RATES[arm]], RATES[arm]
        )
        for arm in ARMS
        for shots in SHOTS
    }
    (given.work / "rates.json").write_text(json.dumps(named(chosen)))
    records = {
        (arm, shots): test(study(given, starts[arm], arm, chosen[arm, shots], shots, SEEDS), given, tested_on)
        for arm in ARMS
        for shots in SHOTS
    }
    record(given.name, {"pre-training": facts_of(start), "rates": named(chosen), **table(records)})


def run(*words: object) -> None:
    """A command of the product."""
    subprocess.run([SCANFOUNDRY, *map(str, words)], check=True)


def pretrain(data: Path, work: Path, steps: int, threads: int, slices: bool = False) -> Path:
    """The run folder of the pre-training, of volumes or of their slices alone; a run that was stopped goes on."""
    sources = []
    for name, folder in POOLS.items():
        shards = work / "shards" / name
        if not (shards / "manifest.json").exists():
            patient = ["--patient-regex", PATIENTS[name]] if name in PATIENTS else []
            run("data", "build", data / folder / "imagesTr", "--out", shards, "--modality", "mr", *patient)
        sources.append({"name": name, "path": str(shards)})
    folder = work / ("mae_slices" if slices else "mae")
    crops = {"crop_2d": CROP[1:], "batch_2d": 8 * BATCH} if slices else {"crop_3d": CROP, "batch_3d": BATCH}
    if not (folder / "model.safetensors").exists():
        config = {
            "run_dir": str(folder),
            "backbone": BACKBONE,
            "objective": {"name": "mae", "mask_ratio": 0.7, "block_3d": [8, 8, 8], "block_2d": [8, 8]},
            "data": {"sources": sources, **crops, "holdout": TEST},
            "optimiser": {"name": "adamw", "lr": 1e-3, "warmup_steps": 50},
            "engine": {"precision": "bf16"},
            "steps": steps,
            "threads": threads,
            "checkpoint_every": 200,
        }
        path = folder.with_suffix(".yaml")
        path.write_text(json.dumps(config))  # JSON is YAML
        run("pretrain", path)
    return folder


def write_split(data: Path, work: Path) -> set[str]:
    """Write the split file that chooses the rate; the keys of the cases to test on in the end."""
    found = known_cases(LabelledData(**_data(data)), SegmentationTask())
    sides: dict[str, list[str]] = {"train": [], "test": []}  # a study tests on the validation patients
    tested = set()
    for case in found.cases:
        place = fraction(case.patient)
        if place < TEST:
            tested.add(case.key)
        else:
            sides["test" if place < VALIDATION else "train"].append(found.names[case.key])
    (work / "split_validation.json").write_text(json.dumps(sides))
    return tested


def _data(folder: Path) -> dict[str, Any]:
    return {"images": folder / "imagesTr", "labels": folder / "labelsTr", "modality": "mr"}


def study(given: Any, start: Path | None, arm: str, rate: float, shots: int, seeds: Sequence[int], **more: Any) -> Path:
    """The run folder of one arm at one rate; seeds that are there already are not trained again."""
    folder = given.work / "studies" / f"{arm.replace(' ', '_')}-{rate:g}-{shots}"
    origin: dict[str, Any] = {"backbone": BACKBONE}
    split: dict[str, Any] = {"file": str(given.work / "split_validation.json")}
    if start is not None:
        origin = {"checkpoint": str(start), "transfer": ARMS.get(arm, ARMS["encoder and decoder"])}
        origin |= {"compare_scratch": False, **more}
        split["allow_pretraining_overlap"] = True  # the pool held the scans that choose the rate, without their labels
    config = {
        "run_dir": str(folder),
        "task": {"name": "segmentation", "classes": ["atrium"]},
        "data": {name: str(value) for name, value in _data(given.data / POOLS["left_atrium"]).items()},
        **origin,
        "plan": {"patch": CROP, "batch": 2},
        "shots": [shots],
        "seeds": list(seeds),
        "split": split,
        "schedule": {"steps": STEPS, "lr": rate, "warmup_steps": 15},
        "processes": given.processes,
        "keep_weights": "all",  # they are tested once the rate is chosen
        "device": "cpu",
    }
    if any(not (cell / "model.safetensors").exists() for cell in cells(folder, shots, seeds)):
        path = folder.with_name(f"{folder.name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
        run("finetune", path)
    return folder


def cells(folder: Path, shots: int, seeds: Sequence[int]) -> list[Path]:
    """The folders of a study's trials; each study has one arm."""
    found = [sorted((folder / "cells").glob(f"*-{shots}-shots-seed{seed}")) for seed in seeds]
    return [each[0] if each else folder / "missing" for each in found]


def choose(studies: Sequence[Path], rates: Sequence[float]) -> float:
    """The rate of the highest Dice on the validation patients, on the first labelled subset."""
    scores = {}
    for folder, rate in zip(studies, rates, strict=True):
        cell = next((folder / "cells").glob(f"*-seed{SEEDS[0]}")) / "cell.json"
        scores[rate] = mean(each["score"] for each in json.loads(cell.read_text())["records"])
    print(studies[0].name, {rate: round(score, 4) for rate, score in scores.items()}, flush=True)
    return max(scores, key=lambda rate: scores[rate])


def test(folder: Path, given: Any, tested_on: set[str]) -> list[list[Record]]:
    """Records of the tested cases, for each seed."""
    trained = sorted((folder / "cells").iterdir())
    waiting = [cell for cell in trained if not (cell / "tested.json").exists()]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        list(pool.map(partial(test_one, given.data / POOLS["left_atrium"], tested_on), waiting))
    return [json.loads((cell / "tested.json").read_text()) for cell in trained]


def test_one(data: Path, tested_on: set[str], cell: Path) -> None:
    """Write the records of one model beside it."""
    torch.set_num_threads(1)
    adapter, models = load_model(cell)
    records = []
    for case in known_cases(LabelledData(**_data(data)), SegmentationTask()).cases:
        if case.key in tested_on:
            sample = adapter.load(case)
            records.append(adapter.record(case, sample, adapter.predict(models, sample, torch.device("cpu"))))
    (cell / "tested.json").write_text(json.dumps(records))


def table(records: dict[tuple[str, int], list[list[Record]]]) -> dict[str, Any]:
    """Dice with intervals, by seed, and paired differences between the arms."""
    dice = mean_of(lambda each: each["score"])
    rows, paired = [], []
    for (arm, shots), groups in records.items():
        found = interval(groups, dice, 1000)
        seeds = [round(mean(each["score"] for each in group), 4) for group in groups]
        rows.append({"arm": arm, "labels": shots, "dice": written(found), "by seed": seeds})
    pairs = (("encoder", "scratch"), ("encoder and decoder", "scratch"), ("encoder and decoder", "encoder"))
    for one, other in pairs:
        for shots in SHOTS:
            gain = difference(records[one, shots], records[other, shots], dice, 1000)
            paired.append({"difference": f"{one} minus {other}", "labels": shots, "dice": written(gain)})
    return {"table": rows, "paired": paired}


def written(found: Any) -> str:
    """'value [low, high]'."""
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def named(chosen: dict[tuple[str, int], float]) -> dict[str, float]:
    """The chosen rates by readable keys."""
    return {f"{arm}, {shots} labels": rate for (arm, shots), rate in chosen.items()}


def facts_of(run_folder: Path) -> dict[str, Any]:
    """What the released model says of itself."""
    info = json.loads((run_folder / "model.json").read_text())
    return {name: info[name] for name in ("objective", "step", "parts", "crop_3d", "patients")}


if __name__ == "__main__":
    main()
