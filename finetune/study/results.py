"""`results.json`: every number of a study, with intervals, and what has to be known to read them."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from typing import Any

from pydantic import BaseModel

from scanfoundry.finetune.cases.cases import UNLABELLED, CaseList
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.metrics.intervals import Interval, difference, interval
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.caveats import caveats
from scanfoundry.finetune.study.label_caveats import caveats_of_labels, label_maps
from scanfoundry.finetune.study.split import Split, class_counts
from scanfoundry.finetune.study.trial import TrialResult
from scanfoundry.finetune.training.optimisation import peak_lr, preset

SCRATCH = "scratch"


class Row(BaseModel):
    """One arm at one number of shots, over all seeds."""

    arm: str
    shots: int | float | str
    train_cases: int
    metrics: dict[str, Interval]


class Difference(BaseModel):
    """An arm minus another at one number of shots: same cases, same steps, same test cases."""

    arm: str
    against: str = SCRATCH
    shots: int | float | str
    metrics: dict[str, Interval]


class Results(BaseModel):
    """The file's content."""

    format_version: int = 1
    task: str
    headline: str
    overview: list[str]  # the metrics that a table shows; `table` and `paired` hold all of them
    classes: list[str]
    table: list[Row]
    paired: list[Difference]
    cells: list[TrialResult]
    data: dict[str, Any]
    setup: dict[str, Any]
    left_out: dict[str, int]
    warnings: list[str]
    versions: dict[str, str]


def summarise(
    config: FinetuneConfig,
    spec: Spec,
    sides: Split,
    found: CaseList,
    trials: Sequence[TrialResult],
    checked: Checked | None = None,
    teacher: dict[str, Any] | None = None,
) -> Results:
    """Means, intervals and paired differences of the finished trials.

    Args:
        config: of the study.
        spec: what all its models have in common.
        sides: who was trained and tested on.
        found: the data set.
        trials: the results of all trials.
        checked: what was found in the label maps, if that is known.
        teacher: what is said of it, where one takes part.
    """
    adapter = adapter_for(spec)
    metrics = adapter.all_metrics()
    table, paired = [], []
    for k in config.shots:
        by_arm = {arm.name: [c for c in trials if c.arm == arm.name and c.shots == k] for arm in config.arms}
        records = {arm: [trial.records for trial in group] for arm, group in by_arm.items()}
        for arm, group in by_arm.items():
            values = {n: interval(records[arm], f, config.bootstrap) for n, f in metrics.items()}
            table.append(Row(arm=arm, shots=k, train_cases=len(group[0].train_cases), metrics=values))
        for arm, against in _pairs(list(records)):
            gain = {n: difference(records[arm], records[against], f, config.bootstrap) for n, f in metrics.items()}
            paired.append(Difference(arm=arm, against=against, shots=k, metrics=gain))
    undefined = any(row.metrics[adapter.headline].value is None for row in table)
    shown = caveats(config, sides, trials, adapter.headline if undefined else None)
    maps = label_maps(spec, sides, checked) if checked is not None else []
    if checked is not None:
        shown = [*caveats_of_labels(maps, trials, checked), *shown]
    return Results(
        task=config.task.name,
        headline=adapter.headline,
        overview=adapter.shown_metrics(),
        classes=spec.classes,
        table=table,
        paired=paired,
        cells=list(trials),
        data=_data(spec, sides, found) | {"label_maps": [row.model_dump() for row in maps]},
        setup=_setup(config, spec, trials) | {"teacher": teacher},
        left_out=left_out(config, sides, found),
        warnings=found.warnings + shown,
        versions=versions(),
    )


def _pairs(arms: list[str]) -> list[tuple[str, str]]:
    """Any two arms, once: each against scratch, then each against those before it."""
    others = [arm for arm in arms if arm != SCRATCH]
    against_scratch = [(arm, SCRATCH) for arm in others] if SCRATCH in arms else []
    return [*against_scratch, *((later, earlier) for earlier, later in combinations(others, 2))]


def left_out(config: FinetuneConfig, sides: Split, found: CaseList) -> dict[str, int]:
    """What did not take part; scans without a label do by self-training."""
    used = len(sides.unlabelled) if config.self_training.rounds else 0
    return {why: n for why, count in found.left_out.items() if (n := count - used * (why == UNLABELLED))}


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    names = ("scanfoundry", "torch", "monai", "numpy", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _data(spec: Spec, sides: Split, found: CaseList) -> dict[str, Any]:
    everyone = sides.pool + sides.test
    return {
        "cases": len(found.cases),
        "patients": len({case.patient for case in everyone}),
        "pool_cases": len(sides.pool),
        "test_cases": len(sides.test),
        "test_patients": len({case.patient for case in sides.test}),
        "test_patients_pretrained_on": sides.overlap,
        "pool_patients_pretrained_on": sides.pool_overlap,
        "pretraining_patients": sides.pretrained_on,
        "classes_in_pool": class_counts(sides.pool, spec.classes),
        "classes_in_test": class_counts(sides.test, spec.classes),
        "fingerprint": spec.plan.fingerprint.model_dump(),
        "modality": spec.modality,
    }


def _transferred(config: FinetuneConfig, trials: Sequence[TrialResult]) -> list[str]:
    """What became of the parts of each checkpoint, once."""
    lines: list[str] = []
    for start in config.starts:
        arms = {arm.name for arm in config.arms if arm.pretrained and arm.start == start}
        told = next((trial.transferred for trial in trials if trial.arm in arms and trial.transferred), [])
        lines += [f"{start}: {line}" if start else line for line in told]
    return lines


def _setup(config: FinetuneConfig, spec: Spec, trials: Sequence[TrialResult]) -> dict[str, Any]:
    return {
        "transferred": _transferred(config, trials),
        "backbone": spec.backbone.model_dump(mode="json"),
        "plan": {"spacing": spec.plan.spacing, "patch": spec.plan.patch, "batch": spec.plan.batch},
        "recipes": config.recipes,
        "optimiser": preset(config.schedule, spec.backbone.family).model_dump(),
        "peak_lr": {arm.name: peak_lr(config.schedule, arm, spec.backbone.family) for arm in config.arms},
        "schedule": config.schedule.model_dump(mode="json"),
        "validation": config.validation.model_dump(mode="json"),
        "self_training": config.self_training.model_dump(mode="json"),
        "budget_seconds": config.budget,
        "augmentation": config.augmentation.model_dump(mode="json"),
        "inference": config.inference.model_dump(mode="json"),
        "intensity": spec.intensity.model_dump(mode="json"),
        "split": config.split.model_dump(mode="json"),
        "seeds": config.seeds,
        "bootstrap": config.bootstrap,
    }
