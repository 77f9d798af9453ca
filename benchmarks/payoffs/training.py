"""What is run: pre-trainings, and trainings on labelled subsets that are seen on validation patients or tested."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from payoffs.places import TEST, Places, command
from payoffs.tables import SCRATCH
from scanfoundry.datasets.identity import fraction
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.tasks.probing import still_features

SMOKE = 4  # steps


def pretrain(places: Places, name: str) -> None:
    """Run a pre-training, or go on with it."""
    run_written(places.start(name), pretrain_config(places, name), "pretrain")


def pretrain_config(places: Places, name: str) -> dict[str, Any]:
    """The configuration of a pre-training."""
    table, folder = places.tables.pretrainings[name], places.start(name)
    pools: list[dict[str, Any]] = [{"name": pool, "path": str(places.shards(pool))} for pool in table.pool]
    data = {**table.config["data"], "sources": pools + table.config["data"].get("sources", [])}
    if pools:
        data |= {"holdout": TEST}
    config = {"run_dir": str(folder), "backbone": table.backbone, "checkpoint_every": 200, "threads": 2}
    config |= {**table.config, "data": data}
    if table.init is not None:
        config |= {"init": str(places.start(table.init))}
    if places.smoke:
        config |= {"steps": SMOKE, "optimiser": {**config.get("optimiser", {}), "warmup_steps": 1}}
    return config


def train(places: Places, task: str, arm: str, rate: float, shots: int, seeds: Sequence[int]) -> None:
    """Train one arm at one rate on the labelled subsets of some seeds; those that are done are not repeated."""
    run_written(places.study(task, arm, rate, shots), study_config(places, task, arm, rate, shots, seeds), "finetune")


def study_config(places: Places, task: str, arm: str, rate: float, shots: int, seeds: Sequence[int]) -> dict[str, Any]:
    """The configuration of a training."""
    table = places.tables.tasks[task]
    schedule = {**table.study["schedule"], "lr": rate}
    start: dict[str, Any] = {"backbone": table.backbone}
    split: dict[str, Any] = {"file": str(places.split(task))}
    if arm != SCRATCH:
        found = places.tables.arms[arm]
        start = {"checkpoint": str(places.start(found.start)), "compare_scratch": False} | found.study
        split["allow_pretraining_overlap"] = True  # the pool holds the scans that choose the rate, without their labels
        # The rate that is chosen is the rate of the pre-trained weights. What an arm sets to nothing is left out.
        schedule |= {"pretrained_lr_scale": 1.0, **start.pop("schedule", {})}
    if places.smoke:
        schedule |= {"steps": SMOKE} | ({"warmup_steps": 1} if schedule.get("warmup_steps") else {})
    schedule = {name: value for name, value in schedule.items() if value is not None}
    return {
        **table.study,
        "run_dir": str(places.study(task, arm, rate, shots)),
        "data": places.labelled(table),
        "shots": [shots],
        "seeds": list(seeds),
        "split": split,
        "schedule": schedule,
        "processes": min(2, len(seeds)),
        "keep_weights": "all",  # they are tested once the rate is chosen
        **start,
    }


def run_written(folder: Path, config: dict[str, Any], what: str) -> None:
    """Write a configuration beside its run folder, and run it."""
    path = folder.with_name(f"{folder.name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    command(what, path)


def cells(folder: Path, seeds: Sequence[int]) -> list[Path]:
    """The folders of a study's trainings, by seed; the study has one arm and one number of labels."""
    found = [sorted((folder / "cells").glob(f"*-seed{seed}")) for seed in seeds]
    return [each[0] if each else folder / "missing" for each in found]


def trained(folder: Path, seeds: Sequence[int]) -> bool:
    """Whether all of these trainings are done."""
    return all((cell / "cell.json").exists() for cell in cells(folder, seeds))


def score_of(cell: Path, metric: str) -> float:
    """The metric of a training on the validation patients."""
    records = json.loads((cell / "cell.json").read_text())["records"]
    return float(load_model(cell)[0].all_metrics()[metric](records))


def test(places: Places, task: str, cell: Path) -> list[Record]:
    """Records of the patients that no choice has seen."""
    adapter, models = load_model(cell)
    device, records = torch.device("cpu"), []
    for case in places.cases(task)[0]:
        if fraction(case.patient) < TEST:
            sample = adapter.load(case)
            if adapter.spec.head != "plain":
                sample.features = still_features(adapter, models[0].encoder, sample, device)
            records.append(adapter.record(case, sample, adapter.predict(models, sample, device)))
    return records
