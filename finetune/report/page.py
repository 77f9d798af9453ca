"""`report.html`: one file that needs nothing else, for a screen and for paper."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from scanfoundry.configs.files import write_text
from scanfoundry.finetune.config.tasks.labels import ReadsClasses
from scanfoundry.finetune.config.tasks.registry import tasks
from scanfoundry.finetune.drawing.overlays import overlay
from scanfoundry.finetune.metrics.intervals import Interval
from scanfoundry.finetune.metrics.registry import added_metrics
from scanfoundry.finetune.report import figures
from scanfoundry.finetune.study.results import SCRATCH, Difference, Results, Row
from scanfoundry.finetune.study.testing import load_pictures
from scanfoundry.finetune.study.trial import TrialName, TrialResult
from scanfoundry.finetune.task import Adapter


def write_report(run_dir: Path, results: Results, best: TrialName) -> Path:
    """Render the report of a finished study beside its results.json; gives its path."""
    source = files("scanfoundry.finetune.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "label": figures.label,
        "limits": limits_text,
        "number": number,
        "shots": figures.shots_text,
    }
    html = environment.from_string(source).render(**_content(run_dir, results, best))
    target = run_dir / "report.html"
    write_text(target, html)
    return target


def number(value: float | None, signed: bool = False) -> str:
    """Three decimals, or a dash where undefined."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.3f}"


def limits_text(value: Interval, signed: bool = False) -> str:
    """'0.790 to 0.831', empty where there is no interval."""
    return "" if value.low is None else f"{number(value.low, signed)} to {number(value.high, signed)}"


def _content(run_dir: Path, results: Results, best: TrialName) -> dict[str, Any]:
    at_best = [cell for cell in results.cells if cell.shots == best.shots]
    shown = next(cell for cell in at_best if cell.arm == best.arm.name and cell.seed == best.seed)
    shown_arms = (best.arm.name, SCRATCH)
    by_arm = {cell.arm: cell.records for cell in at_best if cell.seed == best.seed and cell.arm in shown_arms}
    parts = tasks()[results.task]
    adapter: type[Adapter[Any, Any]] = parts.adapter
    return {
        "r": results,
        "texts": adapter.report,
        "per_class": issubclass(parts.config, ReadsClasses),  # whose shots are drawn of every class
        "best": best,
        "names": {row.arm: figures.name_of(row.arm) for row in results.table},
        "sentences": [_sentence(results, row) for row in results.table if row.shots == best.shots],
        "gain": _gain(results, best),
        "charts": _charts(results, at_best, by_arm, shown, adapter),
        "worst": _worst(run_dir, results, shown, best, adapter),
        "notes": [adapter.report.notes, *_directions(results.task)],
        "cells": results.cells,
        "held": _held(shown, results.classes),
    }


def _gain(results: Results, best: TrialName) -> Difference | None:
    """The arm that is kept against scratch."""
    pairs = (pair for pair in results.paired if pair.shots == best.shots and pair.against == SCRATCH)
    return next((pair for pair in pairs if pair.arm == best.arm.name), None)


def _directions(task: str) -> list[str]:
    """Which way the metrics of plug-ins are better; the task's own notes say it of its own."""
    return [f"{metric.name}: {metric.direction} is better." for metric in added_metrics(task).values()]


def _held(shown: TrialResult, classes: Sequence[str]) -> str:
    """What the held-back cases of the kept model decided, in words; '' where there were none."""
    if not shown.validation:
        return ""
    scores = [record["score"] for record in shown.validation if record["score"] is not None]
    mean = f", mean score {sum(scores) / len(scores):.3f}" if scores else ""
    parts = [f"{len(shown.validation)} of the training cases{mean}"]
    if shown.temperature != 1:
        parts.append(f"temperature {shown.temperature:.2f}")
    for name, rule in zip(classes, shown.postprocess, strict=False):
        if rule.largest:
            parts.append(f"of {name} the largest component is kept")
        elif rule.min_mm3:
            parts.append(f"components of {name} below {rule.min_mm3:.0f} mm³ are removed")
    return "; ".join(parts)


def _sentence(results: Results, row: Row) -> dict[str, str]:
    return {
        "arm": row.arm,
        "name": figures.name_of(row.arm),
        "value": number(row.metrics[results.headline].value),
        "limits": limits_text(row.metrics[results.headline]),
    }


def _charts(
    results: Results,
    at_best: Sequence[TrialResult],
    by_arm: dict[str, list[dict[str, Any]]],
    shown: TrialResult,
    adapter: type[Adapter[Any, Any]],
) -> list[tuple[str, str]]:
    charts = [
        (
            f"{figures.label(results.headline)} by number of labelled patients, with 95% intervals.",
            figures.metric_by_shots(results),
        ),
        ("Every test case.", figures.scores_of_cases(by_arm, adapter.report.score.split(" (")[0])),
    ]
    if any(history.loss for cell in at_best for history in cell.histories):  # a probe in closed form has none
        charts.insert(1, (f"Training loss at {shown.shots} shots, all seeds.", figures.loss_curves(at_best)))
    charts += adapter.charts(shown.records, by_arm, results.classes)
    if any(history.validation for cell in at_best for history in cell.histories):
        charts.append(
            ("Held-back cases over the training; a ring marks the weights kept.", figures.validation_curves(at_best))
        )
    return charts


def _worst(
    run_dir: Path, results: Results, shown: TrialResult, best: TrialName, adapter: type[Adapter[Any, Any]]
) -> list[dict[str, Any]]:
    score = {record["case"]: record["score"] for record in shown.records}
    return [
        {
            "case": key[:8],
            "score": number(score[key]),
            "image": overlay(picture, adapter.draw, len(results.classes)),
            "bars": adapter.bars(picture, results.classes),
        }
        for key, picture in load_pictures(run_dir / "cells" / best.folder).items()
    ]
