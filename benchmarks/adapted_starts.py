"""Are adapted kernels worth something? Larger kernels (UpKern), and volumes from a model of images, beside scratch.

command: python benchmarks/adapted_starts.py DATA WORK [--only kernel | dimension] [--steps 300] [--ways centre average]
  kernel     breast lesions (BUSI, images), MedNeXt-S: trained with kernels of 3, then of 5 from that model by
             `upkern`; beside it from scratch with kernels of 5 for as many steps
  dimension  left atria (volumes), the residual U-Net of whole_network.py: pre-trained by `mae` on slices alone, then
             inflated in each of the --ways; WORK must hold a finished whole_network.py, with its scratch arm
What is finished in WORK is not done again.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import whole_network
from choosing import SEEDS, cells, records_of, spoken, trained
from product import run_written
from record import record

from scanfoundry.datasets.identity import fraction
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats.discover import known_cases
from scanfoundry.finetune.metrics.intervals import difference, interval
from scanfoundry.finetune.metrics.weighted import Record, mean_of

IMAGES, SIDE, TESTED = 20, 64, 60  # labelled images, side of a patch at half the resolution, images that are tested on
VOLUMES, SLICE_STEPS = 5, 600
Groups = list[list[Record]]  # of each seed


def main() -> None:
    """Train what is missing, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=("kernel", "dimension"))
    parser.add_argument("--steps", type=int, default=300, help="of a training with images")
    parser.add_argument("--ways", nargs="+", default=["centre", "average", "fourier"], help="of inflation")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.only != "dimension":
        record("adapted_kernel", table(kernel_arms(given), "scratch, kernel 5"))
    if given.only != "kernel":
        record("adapted_dimension", table(dimension_arms(given), "scratch"))


def kernel_arms(given: Any) -> dict[str, Groups]:
    """Records by arm of the lesions."""
    images = given.data / "busi_breast_ultrasound"
    split = lesion_split(images, given.work)

    def train(name: str, kernel: int, seeds: tuple[int, ...] = SEEDS, **start: Any) -> list[Path]:
        """The trials of a study."""
        folder: Path = given.work / "kernel" / name
        config = {
            "run_dir": str(folder),
            "task": {"name": "segmentation", "classes": ["lesion"]},
            "data": lesions(images),
            "backbone": {"name": "mednext", "size": "S", "kernel": kernel},
            "plan": {"patch": [1, SIDE, SIDE], "spacing": [1, 2, 2], "batch": 4},
            "shots": [IMAGES],
            "seeds": list(seeds),
            "split": {"file": str(split)},
            "schedule": {
                "steps": given.steps,
                "warmup_steps": 15,
                "precision": "float32",
            },
            "processes": given.processes,
            "keep_weights": "all",  # those of kernel 3 are started from
            "device": "cpu",
        } | start
        if not trained(folder, seeds):
            run_written("finetune", folder, config)
        return cells(folder, seeds)

    small, large = train("kernel 3", 3), train("kernel 5", 5)
    enlarged = []
    for seed, model in zip(SEEDS, small, strict=True):
        start = {"checkpoint": str(model), "adapt": {"kernel": "upkern"}, "compare_scratch": False}
        enlarged += train(f"upkern {seed}", 5, (seed,), **start)
    arms = {"scratch, kernel 3": small, "scratch, kernel 5": large, "kernel 5, from kernel 3 by upkern": enlarged}
    return {arm: [records_of(cell) for cell in trials] for arm, trials in arms.items()}


def lesions(images: Path) -> dict[str, str]:
    """The configuration's `data`."""
    return {"images": str(images / "images"), "labels": str(images / "masks"), "modality": "us"}


def lesion_split(images: Path, work: Path) -> Path:
    """A file of the images to train from and of the first TESTED to test on; images without a lesion take no part."""
    found = known_cases(LabelledData(**lesions(images)), SegmentationTask())
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for case in sorted(found.cases, key=lambda case: fraction(case.patient)):
        if found.names[case.key].startswith("normal"):
            continue
        sides["test" if len(sides["test"]) < TESTED else "train"].append(found.names[case.key])
    path = work / "lesions.json"
    path.write_text(json.dumps(sides))
    return path


def dimension_arms(given: Any) -> dict[str, Groups]:
    """Records by arm of the left atria, each at the rate that whole_network.py chose for scratch or for the whole."""
    whole_network.write_split(given)
    rates = json.loads((given.work / "rates.json").read_text())
    scratch = whole_network.study(given, None, "scratch", rates[f"scratch, {VOLUMES} labels"], VOLUMES, SEEDS)
    arms = {"scratch": whole_network.test(scratch, given)}
    start = whole_network.pretrain(given.data, given.work, SLICE_STEPS, 2, slices=True)
    rate = rates[f"encoder and decoder, {VOLUMES} labels"]
    for way in given.ways:
        arm = f"slices by {way}"
        folder = whole_network.study(given, start, arm, rate, VOLUMES, SEEDS, adapt={"dimension": way})
        arms[arm] = whole_network.test(folder, given)
    return arms


def table(arms: dict[str, Groups], reference: str) -> dict[str, Any]:
    """Dice with intervals, by seed, and the paired difference to `reference`."""
    dice = mean_of(lambda each: each["score"])
    rows = []
    for arm, groups in arms.items():
        row = {"arm": arm, "dice": spoken(interval(groups, dice, 1000))}
        row["by seed"] = [round(mean(each["score"] for each in group), 4) for group in groups]
        if arm != reference:
            row[f"minus {reference}"] = spoken(difference(groups, arms[reference], dice, 1000))
        rows.append(row)
    return {"table": rows}


if __name__ == "__main__":
    main()
