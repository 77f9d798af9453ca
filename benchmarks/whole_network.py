"""Is a pre-trained decoder worth something? Left atrium, few labels: scratch, encoder, encoder and decoder.

command: python benchmarks/whole_network.py DATA WORK [--steps 4000] [--processes 2]
DATA holds left_atrium_mr, msd_task04_hippocampus and acdc_cardiac_mr with their images. What is finished in WORK is not
done again. A residual U-Net is pre-trained whole by `mae` on all volumes but those of the patients that are tested on.
Each arm is trained at three rates on each labelled subset. Its rate is chosen, by number of labels, on validation
patients; only then are the models of that rate tested.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from record import record

from scanfoundry.datasets.identity import fraction
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats.discover import known_cases
from scanfoundry.finetune.metrics.intervals import difference, interval
from scanfoundry.finetune.metrics.weighted import mean_of

SCANFOUNDRY = str(Path(sys.executable).parent / "scanfoundry")
POOLS = {"left_atrium": "left_atrium_mr", "hippocampus": "msd_task04_hippocampus", "cardiac": "acdc_cardiac_mr"}
PATIENTS = {"cardiac": "(patient\\d+)"}
BACKBONE = {"name": "resenc", "features": [16, 32, 64, 128], "blocks": [1, 2, 2, 2], "strides": [[2, 2, 2]] * 3}
CROP, BATCH = [32, 48, 48], 4  # (D, H, W)
TEST, VALIDATION = 0.25, 0.4  # patients below the first are tested on, those between choose the rate
ARMS = {"scratch": None, "encoder": ["encoder"], "encoder and decoder": ["encoder", "decoder"]}
RATES = {"scratch": (3e-3, 1e-3, 3e-4), "encoder": (3e-3, 1e-3, 3e-4), "encoder and decoder": (3e-3, 1e-3, 3e-4)}
SHOTS, SEEDS, STEPS = (2, 5), (0, 1, 2), 300


def main() -> None:
    """Build, pre-train, choose, test, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4000, help="of the pre-training; at most an hour of 2 cores")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--name", default="whole_network")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    start = pretrain(given.data, given.work, given.steps)
    splits = write_splits(given.data / POOLS["left_atrium"], given.work)
    chosen = choose(given, start, splits["validation"])
    tested = {
        (arm, shots): study(given, start, splits["test"], "test", arm, chosen[arm, shots], shots)
        for arm in ARMS
        for shots in SHOTS
    }
    record(given.name, {"pre-training": facts_of(start), "rates": named(chosen), **table(tested)})


def run(*words: object) -> None:
    """A command of the product."""
    subprocess.run([SCANFOUNDRY, *map(str, words)], check=True)


def pretrain(data: Path, work: Path, steps: int) -> Path:
    """The run folder of the pre-training; a run that was stopped goes on."""
    sources = []
    for name, folder in POOLS.items():
        shards = work / "shards" / name
        if not (shards / "manifest.json").exists():
            patient = ["--patient-regex", PATIENTS[name]] if name in PATIENTS else []
            run("data", "build", data / folder / "imagesTr", "--out", shards, "--modality", "mr", *patient)
        sources.append({"name": name, "path": str(shards)})
    folder = work / "mae"
    if not (folder / "model.safetensors").exists():
        config = {
            "run_dir": str(folder),
            "backbone": BACKBONE,
            "objective": {"name": "mae", "mask_ratio": 0.7, "block_3d": [8, 8, 8], "block_2d": [8, 8]},
            "data": {"sources": sources, "crop_3d": CROP, "batch_3d": BATCH, "holdout": TEST},
            "optimiser": {"name": "adamw", "lr": 1e-3, "warmup_steps": 50},
            "engine": {"precision": "bf16"},
            "steps": steps,
            "threads": 2,
            "checkpoint_every": 200,
        }
        (work / "mae.yaml").write_text(json.dumps(config))  # JSON is YAML
        run("pretrain", work / "mae.yaml")
    return folder


def write_splits(data: Path, work: Path) -> dict[str, Path]:
    """Split files: patients to choose the rate by, and those to test on."""
    found = known_cases(LabelledData(**_data(data)), SegmentationTask())
    sides: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for case in found.cases:
        place = fraction(case.patient)
        sides["test" if place < TEST else "validation" if place < VALIDATION else "train"].append(found.names[case.key])
    paths = {}
    for name in ("validation", "test"):
        paths[name] = work / f"split_{name}.json"
        paths[name].write_text(json.dumps({"train": sides["train"], "test": sides[name]}))
    return paths


def _data(folder: Path) -> dict[str, Any]:
    return {"images": folder / "imagesTr", "labels": folder / "labelsTr", "modality": "mr"}


def study(given: Any, start: Path, split: Path, kind: str, arm: str, rate: float, shots: int) -> Path:
    """The results of one arm at one rate: all seeds."""
    folder = given.work / kind / f"{arm.replace(' ', '_')}-{rate:g}-{shots}"
    parts = ARMS[arm]
    origin = {"backbone": BACKBONE} if parts is None else {"checkpoint": str(start), "transfer": parts}
    config = {
        "run_dir": str(folder),
        "task": {"name": "segmentation", "classes": ["atrium"]},
        "data": {name: str(value) for name, value in _data(given.data / POOLS["left_atrium"]).items()},
        **origin,
        "plan": {"patch": CROP, "batch": 2},
        "shots": [shots],
        "seeds": list(SEEDS),
        "split": {"file": str(split)},
        "schedule": {"steps": STEPS, "lr": rate, "warmup_steps": 15},
        "processes": given.processes,
        "device": "cpu",
    } | ({} if parts is None else {"compare_scratch": False})
    if not (folder / "results.json").exists():
        path = given.work / "study.yaml"
        path.write_text(json.dumps(config))
        run("finetune", path)
    return folder / "results.json"


def choose(given: Any, start: Path, split: Path) -> dict[tuple[str, int], float]:
    """By arm and number of labels: the rate of the highest Dice on the validation patients."""
    chosen = {}
    for arm in ARMS:
        for shots in SHOTS:
            scores = {}
            for rate in RATES[arm]:
                found = study(given, start, split, "validation", arm, rate, shots)
                scores[rate] = mean(each["score"] for each in flat(records_of(found)))
            chosen[arm, shots] = max(scores, key=lambda rate: scores[rate])
            print(arm, shots, {rate: round(score, 4) for rate, score in scores.items()})
    return chosen


def records_of(results: Path) -> list[list[dict[str, Any]]]:
    """Records of the cases, for each seed."""
    return [trial["records"] for trial in json.loads(results.read_text())["cells"]]


def flat(records: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """All records."""
    return (each for group in records for each in group)


def table(tested: dict[tuple[str, int], Path]) -> dict[str, Any]:
    """Dice with intervals, by seed, and paired differences between the arms."""
    dice = mean_of(lambda each: each["score"])
    records = {key: records_of(path) for key, path in tested.items()}
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
