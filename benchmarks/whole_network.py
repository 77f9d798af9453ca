"""Is a pre-trained decoder worth something? Left atrium, few labels: scratch, encoder, encoder and decoder.

command: python benchmarks/whole_network.py DATA WORK [--steps 4500] [--processes 2]
DATA holds left_atrium_mr, msd_task04_hippocampus and acdc_cardiac_mr with their images. What is finished in WORK is not
done again. A residual U-Net is pre-trained whole by `mae` on all volumes but those of the patients that are tested on.
Each arm is trained at three rates on the first labelled subset of each size. Its rate is chosen, by number of labels,
on validation patients. At that rate the other subsets are trained, and only then are these models tested.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from choosing import SEEDS, TEST, TESTED, cells, choosing_split, records_of, spoken, test_model, trained
from product import run, run_written
from record import record

from scanfoundry.finetune.cases.cases import CaseList
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats.discover import known_cases
from scanfoundry.finetune.metrics.intervals import difference, interval
from scanfoundry.finetune.metrics.weighted import Record, mean_of

POOLS = {"left_atrium": "left_atrium_mr", "hippocampus": "msd_task04_hippocampus", "cardiac": "acdc_cardiac_mr"}
PATIENTS = {"cardiac": "(patient\\d+)"}
BACKBONE = {"name": "resenc", "features": [16, 32, 64, 128], "blocks": [1, 2, 2, 2], "strides": [[2, 2, 2]] * 3}
CROP, BATCH = [32, 48, 48], 4  # (D, H, W)
ARMS = {"scratch": [], "encoder": ["encoder"], "encoder and decoder": ["encoder", "decoder"]}
RATES, SHOTS, STEPS = (3e-3, 1e-3, 3e-4), (2, 5), 300


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
    write_split(given)
    starts = {arm: None if arm == "scratch" else start for arm in ARMS}
    chosen = {
        (arm, shots): choose([study(given, starts[arm], arm, rate, shots, SEEDS[:1]) for rate in RATES])
        for arm in ARMS
        for shots in SHOTS
    }
    (given.work / "rates.json").write_text(json.dumps(named(chosen)))
    records = {
        (arm, shots): test(study(given, starts[arm], arm, chosen[arm, shots], shots, SEEDS), given)
        for arm in ARMS
        for shots in SHOTS
    }
    record(given.name, {"pre-training": facts_of(start), "rates": named(chosen), **table(records)})


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
        run_written("pretrain", folder, config)
    return folder


def labelled(given: Any) -> dict[str, Any]:
    """The `data` of a study."""
    folder = given.data / POOLS["left_atrium"]
    return {"images": str(folder / "imagesTr"), "labels": str(folder / "labelsTr"), "modality": "mr"}


def found_cases(given: Any) -> CaseList:
    """All labelled atria."""
    return known_cases(LabelledData(**labelled(given)), SegmentationTask())


def write_split(given: Any) -> None:
    """Write the split file that chooses the rate."""
    (given.work / "split_validation.json").write_text(choosing_split(found_cases(given)))


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
        "data": labelled(given),
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
    if not trained(folder, seeds):
        run_written("finetune", folder, config)
    return folder


def choose(studies: Sequence[Path]) -> float:
    """The rate of the highest Dice on the validation patients, on the first labelled subset."""
    scores = {}
    for folder, rate in zip(studies, RATES, strict=True):
        scores[rate] = mean(each["score"] for each in records_of(cells(folder, SEEDS[:1])[0]))
    print(studies[0].name, {rate: round(score, 4) for rate, score in scores.items()}, flush=True)
    return max(scores, key=lambda rate: scores[rate])


def test(folder: Path, given: Any) -> list[list[Record]]:
    """Records of the tested cases, for each seed."""
    models = cells(folder, SEEDS)
    waiting = [cell for cell in models if not (cell / TESTED).exists()]
    with ProcessPoolExecutor(given.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(partial(test_model, cases=found_cases(given).cases), waiting))
    return [json.loads((cell / TESTED).read_text()) for cell in models]


def table(records: dict[tuple[str, int], list[list[Record]]]) -> dict[str, Any]:
    """Dice with intervals, by seed, and paired differences between the arms."""
    dice = mean_of(lambda each: each["score"])
    rows, paired = [], []
    for (arm, shots), groups in records.items():
        found = interval(groups, dice, 1000)
        seeds = [round(mean(each["score"] for each in group), 4) for group in groups]
        rows.append({"arm": arm, "labels": shots, "dice": spoken(found), "by seed": seeds})
    pairs = (("encoder", "scratch"), ("encoder and decoder", "scratch"), ("encoder and decoder", "encoder"))
    for one, other in pairs:
        for shots in SHOTS:
            gain = difference(records[one, shots], records[other, shots], dice, 1000)
            paired.append({"difference": f"{one} minus {other}", "labels": shots, "dice": spoken(gain)})
    return {"table": rows, "paired": paired}


def named(chosen: dict[tuple[str, int], float]) -> dict[str, float]:
    """The chosen rates by readable keys."""
    return {f"{arm}, {shots} labels": rate for (arm, shots), rate in chosen.items()}


def facts_of(run_folder: Path) -> dict[str, Any]:
    """What the released model says of itself."""
    info = json.loads((run_folder / "model.json").read_text())
    return {name: info[name] for name in ("objective", "step", "parts", "crop_3d", "patients")}


if __name__ == "__main__":
    main()
