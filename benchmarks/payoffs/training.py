"""What is run: pre-trainings, and trainings on labelled subsets that are seen on validation patients."""

from collections.abc import Sequence
from typing import Any

from choosing import TEST
from product import run_written

from payoffs.places import Places
from payoffs.tables import SCRATCH

SMOKE = 4  # steps


def pretrain(places: Places, name: str) -> None:
    """Run a pre-training, or go on with it."""
    if places.tables.pretrainings[name].task is not None:
        run_written("finetune", places.start(name), supervised_config(places, name))
    else:
        run_written("pretrain", places.start(name), pretrain_config(places, name))


def pretrain_config(places: Places, name: str) -> dict[str, Any]:
    """The configuration of a pre-training."""
    table, folder = places.tables.pretrainings[name], places.start(name)
    pools: list[dict[str, Any]] = [
        {"name": pool, "path": str(places.shards(pool)), "weight": table.weights.get(pool, 1.0)} for pool in table.pool
    ]
    data = {**table.config["data"], "sources": pools + table.config["data"].get("sources", [])}
    if pools:
        data |= {"holdout": TEST}
    config = {"run_dir": str(folder), "backbone": table.backbone, "checkpoint_every": 200, "threads": places.threads}
    config |= {**table.config, "data": data}
    if table.init is not None:
        config |= {"init": str(places.start(table.init))}
    if places.smoke:
        config |= {"steps": SMOKE, "optimiser": {**config.get("optimiser", {}), "warmup_steps": 1}}
    return config


def supervised_config(places: Places, name: str) -> dict[str, Any]:
    """The configuration of a training on all training labels of another task."""
    table = places.tables.pretrainings[name]
    assert table.task is not None
    task = places.tables.tasks[table.task]
    schedule = {**task.study["schedule"], **table.schedule} | ({"steps": SMOKE} if places.smoke else {})
    facts = {"shots": ["all"], "seeds": [0], "split": {"file": str(places.split(table.task))}, "schedule": schedule}
    where = {"run_dir": str(places.start(name)), "data": places.labelled(task), "backbone": table.backbone}
    return {**task.study, **where, **facts}


def train(places: Places, task: str, arm: str, rate: float, shots: int, seeds: Sequence[int]) -> None:
    """Train one arm at one rate on the labelled subsets of some seeds; those that are done are not repeated."""
    run_written("finetune", places.study(task, arm, rate, shots), study_config(places, task, arm, rate, shots, seeds))


def study_config(places: Places, task: str, arm: str, rate: float, shots: int, seeds: Sequence[int]) -> dict[str, Any]:
    """The configuration of a training."""
    table = places.tables.tasks[task]
    schedule = {**table.study["schedule"], "lr": rate}
    start: dict[str, Any] = {"backbone": table.backbone}
    split: dict[str, Any] = {"file": str(places.split(task))}
    if arm != SCRATCH:
        found = places.tables.arms[arm]
        changes = dict(found.study)
        schedule |= changes.pop("schedule", {})  # what an arm sets to nothing is left out
        if found.start is not None:
            start = {"checkpoint": str(places.start(found.start)), "compare_scratch": False}
            split["allow_pretraining_overlap"] = True  # the pool holds the scans that choose, without their labels
            schedule = {"pretrained_lr_scale": 1.0} | schedule  # the rate that is chosen is that of these weights
        start |= changes
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
        "keep_weights": "all",  # they are tested once the rate is chosen
        **start,
    }
