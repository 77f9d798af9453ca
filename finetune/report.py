"""`report.html`: one file that needs nothing else, for a screen and for paper."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from scanforge.finetune import figures
from scanforge.finetune.cells import CellName, CellResult, load_pictures
from scanforge.finetune.metrics.intervals import Interval
from scanforge.finetune.results import Results, Row
from scanforge.finetune.storage import write_whole

SCORES = {
    "segmentation": "Dice",
    "classification": "probability of the true class",
    "detection": "AP of the case (1 - top score where there is no finding)",
}
LIMITS = {
    "segmentation": "Surface distances (HD95, NSD) are not computed in this version; Dice alone hides thin errors.",
    "classification": "Scans are scaled to fit the patch; findings below its resolution are not seen. "
    "Probabilities are not calibrated; see the ECE.",
    "detection": "Findings below the resolution of the grid that the network sees are not seen. "
    "FROC is not computed in this version.",
}
EMPTY_MASKS = "Dice is 2|P and T| / (|P| + |T|). Empty truth and prediction: undefined, left out; only one empty: 0."


def write_report(run_dir: Path, results: Results, best: CellName) -> Path:
    """Render the report of a finished study beside its results.json; gives its path."""
    source = files("scanforge.finetune").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"label": figures.label, "limits": limits_text, "number": number}
    html = environment.from_string(source).render(**_content(run_dir, results, best))
    target = run_dir / "report.html"
    write_whole(target, lambda part: part.write_text(html, encoding="utf-8"))
    return target


def number(value: float | None, signed: bool = False) -> str:
    """Three decimals, or a dash where undefined."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.3f}"


def limits_text(value: Interval, signed: bool = False) -> str:
    """'0.790 to 0.831', empty where there is no interval."""
    return "" if value.low is None else f"{number(value.low, signed)} to {number(value.high, signed)}"


def _content(run_dir: Path, results: Results, best: CellName) -> dict[str, Any]:
    at_best = [cell for cell in results.cells if cell.shots == best.shots]
    shown = next(cell for cell in at_best if cell.arm == best.arm and cell.seed == best.seed)
    by_arm = {cell.arm: cell.records for cell in at_best if cell.seed == best.seed}
    return {
        "r": results,
        "best": best,
        "names": figures.NAMES,
        "sentences": [_sentence(results, row) for row in results.table if row.shots == best.shots],
        "gain": next((pair for pair in results.paired if pair.shots == best.shots), None),
        "charts": _charts(results, at_best, by_arm, shown),
        "worst": _worst(run_dir, results, shown, best),
        "score": SCORES[results.task],
        "notes": [EMPTY_MASKS] if results.task == "segmentation" else [],
        "limits": LIMITS[results.task],
        "cells": results.cells,
    }


def _sentence(results: Results, row: Row) -> dict[str, str]:
    return {
        "arm": row.arm,
        "name": figures.NAMES[row.arm],
        "value": number(row.metrics[results.headline].value),
        "limits": limits_text(row.metrics[results.headline]),
    }


def _charts(
    results: Results, at_best: Sequence[CellResult], by_arm: dict[str, list[dict[str, Any]]], shown: CellResult
) -> list[tuple[str, str]]:
    charts = [
        (
            f"{figures.label(results.headline)} by number of labelled patients, with 95% intervals.",
            figures.metric_by_shots(results),
        ),
        (f"Training loss at {shown.shots} shots, all seeds.", figures.loss_curves(at_best)),
        ("Every test case.", figures.scores_of_cases(by_arm, SCORES[results.task].split(" (")[0])),
    ]
    if results.task == "classification":
        charts.append(("Cases by true and predicted class.", figures.confusion(shown.records, results.classes)))
        charts.append(("Reliability; the numbers count cases.", figures.reliability(shown.records)))
    if results.task == "detection":
        charts.append(("Precision and recall of all boxes, IoU 0.1.", figures.precision_recall(by_arm, "0.1")))
    return charts


def _worst(run_dir: Path, results: Results, shown: CellResult, best: CellName) -> list[dict[str, Any]]:
    score = {record["case"]: record["score"] for record in shown.records}
    return [
        {
            "case": key[:8],
            "score": number(score[key]),
            "image": figures.overlay(picture, results.task, len(results.classes)),
            "bars": _bars(picture, results.classes) if results.task == "classification" else [],
        }
        for key, picture in load_pictures(run_dir / "cells" / best.folder).items()
    ]


def _bars(picture: dict[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    truth = int(picture["truth"])
    rows = zip(classes, (float(p) for p in picture["probabilities"]), strict=True)
    return [{"name": name, "value": value, "true": k == truth} for k, (name, value) in enumerate(rows)]
