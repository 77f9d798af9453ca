"""`report.html`: one file that needs nothing else, for a screen and for paper."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined

from scanfoundry.configs.files import write_text
from scanfoundry.finetune.metrics.intervals import Interval
from scanfoundry.finetune.metrics.reliability import counted, pooled
from scanfoundry.finetune.report import figures
from scanfoundry.finetune.report.overlays import overlay
from scanfoundry.finetune.study.results import SCRATCH, Results, Row
from scanfoundry.finetune.study.testing import load_pictures
from scanfoundry.finetune.study.trial import TrialName, TrialResult

SCORES = {
    "segmentation": "Dice",
    "classification": "probability of the true class",
    "detection": "AP of the case (1 - top score where there is no finding)",
    "regression": "minus the absolute error",
}
LIMITS = {
    "segmentation": "Dice, NSD and HD95 are taken at each file's own grid; a mask thinner than a voxel is not seen.",
    "classification": "Scans are scaled to fit the patch; findings below its resolution are not seen. "
    "How far probabilities can be taken at their word: see the ECE.",
    "detection": "Findings below the resolution of the plan are not seen. Scores rank boxes; no probabilities.",
    "regression": "Scans are scaled to fit the patch; what is below its resolution is not seen. "
    "Values outside the range of the training cases are extrapolated.",
}
NOTES = {
    "segmentation": "Dice is 2|P and T| / (|P| + |T|); NSD the share of both surfaces within task.tolerance (1 mm "
    "unless set) of the other; HD95 the larger 95th percentile of the distances between the surfaces, in mm, lower "
    "is better. Truth and prediction both empty: undefined, left out. One of them empty: Dice and NSD are 0, HD95 is "
    "the diagonal of the scan, so that predicting nothing never pays. ECE: of voxels within 5 of the box around the "
    "truth; lower is better.",
    "classification": "ECE and Brier: lower is better.",
    "detection": "AP is the area under precision and recall (all points), the mean over classes. FROC is the mean "
    "sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, scans without a finding counted.",
    "regression": "MAE and RMSE are in the unit of the value; lower is better.",
}


def write_report(run_dir: Path, results: Results, best: TrialName) -> Path:
    """Render the report of a finished study beside its results.json; gives its path."""
    source = files("scanfoundry.finetune.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"label": figures.label, "limits": limits_text, "number": number}
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
    return {
        "r": results,
        "best": best,
        "names": figures.NAMES,
        "sentences": [_sentence(results, row) for row in results.table if row.shots == best.shots],
        "gain": next((p for p in results.paired if p.shots == best.shots and p.arm == best.arm.name), None),
        "charts": _charts(results, at_best, by_arm, shown),
        "worst": _worst(run_dir, results, shown, best),
        "score": SCORES[results.task],
        "notes": [NOTES[results.task]],
        "limits": LIMITS[results.task],
        "cells": results.cells,
        "held": _held(shown, results.classes),
    }


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
        "name": figures.NAMES[row.arm],
        "value": number(row.metrics[results.headline].value),
        "limits": limits_text(row.metrics[results.headline]),
    }


def _charts(
    results: Results, at_best: Sequence[TrialResult], by_arm: dict[str, list[dict[str, Any]]], shown: TrialResult
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
        charts.append(("Reliability; the numbers count cases.", figures.reliability(_class_bins(shown.records), False)))
    if results.task == "segmentation":
        caption = "Reliability of voxels around the truth; the numbers are shares of them."
        charts.append((caption, figures.reliability(pooled(shown.records), True)))
    if results.task == "detection":
        charts.append(("Precision and recall of all boxes, IoU 0.1.", figures.precision_recall(by_arm, "0.1")))
        charts.append(("FROC, IoU 0.1.", figures.froc(by_arm, 0.1, results.classes)))
    if results.task == "regression":
        charts.append(("Predicted and true value of every test case.", figures.agreement(shown.records)))
    if any(history.validation for cell in at_best for history in cell.histories):
        charts.append(
            ("Held-back cases over the training; a ring marks the weights kept.", figures.validation_curves(at_best))
        )
    return charts


def _class_bins(records: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    probabilities, labels = ([record[name] for record in records] for name in ("probabilities", "label"))
    return np.array(counted(np.array(probabilities), np.array(labels)))


def _worst(run_dir: Path, results: Results, shown: TrialResult, best: TrialName) -> list[dict[str, Any]]:
    score = {record["case"]: record["score"] for record in shown.records}
    return [
        {
            "case": key[:8],
            "score": number(score[key]),
            "image": overlay(picture, results.task, len(results.classes)),
            "bars": _bars(picture, results.classes) if results.task == "classification" else [],
        }
        for key, picture in load_pictures(run_dir / "cells" / best.folder).items()
    ]


def _bars(picture: dict[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    truth = int(picture["truth"])
    rows = zip(classes, (float(p) for p in picture["probabilities"]), strict=True)
    return [{"name": name, "value": value, "true": k == truth} for k, (name, value) in enumerate(rows)]
