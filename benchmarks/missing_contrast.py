"""What each contrast is worth, and what is left without it: every patient tested on once, every channel hidden in turn.

command: python benchmarks/missing_contrast.py brain_tumour_segmentation --name NAME run_dir=DIR data.path=DIR
             checkpoint=RUN (or backbone=...) [augmentation.channel_dropout=0.3 ...]
The words are those of `scanfoundry finetune`. For each patient a study is trained on all others, with the recipe's
channel dropout and without any, and tested with all channels and with each one missing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from scanfoundry.configs.loading import check, find, override, read_yaml
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.formats import CaseList, discover
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.model_file import load_model, pick_device
from scanfoundry.finetune.run_study import run
from scanfoundry.finetune.study.prepare import Study, prepare
from scanfoundry.finetune.study.trial import TrialName


def left_out(found: CaseList, patient: str, folder: Path) -> Path:
    """A split file that tests on one patient."""
    names: dict[str, list[str]] = {"train": [], "test": []}
    for case in found.cases:
        names["test" if case.patient == patient else "train"].append(found.names[case.key])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "split.json"
    path.write_text(json.dumps(names))
    return path


def without(case: Case, channel: int | None) -> Case:
    """The case as it would be had nobody acquired that channel."""
    images = tuple(None if i == channel else image for i, image in enumerate(case.images))
    return Case(case.key, case.patient, images, case.target, case.drawn_on)


def tested(study: Study, name: TrialName) -> dict[str, list[Record]]:
    """Records of the test cases by the channel that is hidden, or 'none'."""
    adapter, members = load_model(study.config.run_dir / "cells" / name.folder)
    records: dict[str, list[Record]] = {}
    for i, label in enumerate(["none", *study.spec.channels]):
        for case in study.sides.test:
            sample = adapter.load(without(case, i - 1 if i else None))
            prediction = adapter.predict(members, sample, pick_device("auto"))
            records.setdefault(label, []).append(adapter.record(case, sample, prediction))
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--name", required=True)
    given = parser.parse_intermixed_args()
    config = check(FinetuneConfig, override(read_yaml(find(given.recipe, "finetune")), given.words), "benchmark")
    root, whole = config.run_dir, discover(config.data, config.task)
    found: dict[str, dict[str, list[Record]]] = {}
    for number, patient in enumerate(sorted({case.patient for case in whole.cases})):
        for dropout in (config.augmentation.channel_dropout, 0.0):
            folder = root / f"patient{number}-dropout{dropout}"
            each = config.model_copy(
                update={
                    "run_dir": folder,
                    "split": config.split.model_copy(update={"file": left_out(whole, patient, folder)}),
                    "augmentation": config.augmentation.model_copy(update={"channel_dropout": dropout}),
                    "keep_weights": "all",
                    "shots": ["all"],
                }
            )
            run(each)
            study = prepare(each)
            for name in study.names:
                by_channel = found.setdefault(f"{name.arm.name}, channel dropout {dropout}", {})
                for label, records in tested(study, name).items():
                    by_channel.setdefault(label, []).extend(records)
    record(given.name, {"cases": len(whole.cases), "dice_by_missing_channel": summarised(found)})


def summarised(found: dict[str, dict[str, list[Record]]]) -> dict[str, Any]:
    """Mean score over the cases; the cases' own beside it, for there are few."""
    return {
        arm: {
            label: {
                "mean": round(float(np.mean([r["score"] or 0.0 for r in records])), 4),
                "cases": [None if r["score"] is None else round(r["score"], 3) for r in records],
            }
            for label, records in by_channel.items()
        }
        for arm, by_channel in found.items()
    }


if __name__ == "__main__":
    main()
