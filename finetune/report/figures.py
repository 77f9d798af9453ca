"""Figures of the report that every study has, as inline images."""

from collections.abc import Sequence

import numpy as np

from scanfoundry.finetune.drawing.canvas import COLOURS, FAINT, INK, axes_of, colours_of, inline, name_of
from scanfoundry.finetune.metrics.intervals import Record
from scanfoundry.finetune.study.results import Results
from scanfoundry.finetune.study.trial import TrialResult

WRITTEN = {
    "auroc": "AUROC",
    "brier": "Brier",
    "dice": "Dice",
    "ece": "ECE",
    "hd95": "HD95 (mm)",
    "mae": "MAE",
    "nsd": "NSD",
    "pearson": "Pearson",
    "r2": "R²",
    "rmse": "RMSE",
    "spearman": "Spearman",
}
BOX_METRICS = {"ap": "AP", "map": "mean AP", "froc": "FROC"}


def label(metric: str) -> str:
    """A metric's name as people write it."""
    first, _, rest = metric.partition(" ")
    kind, _, iou = first.partition("@")
    if kind in BOX_METRICS:
        return " ".join(filter(None, [f"{BOX_METRICS[kind]} at IoU {iou.replace(':', ' to ')}", rest]))
    return " ".join(filter(None, [WRITTEN.get(first, first), rest]))


def shots_text(shots: float | str) -> str:
    """A number of labelled patients, or a share of them, as people write it."""
    if shots == "all":
        return "all"
    return f"{100 * shots:g}%" if isinstance(shots, float) else str(shots)


def metric_by_shots(results: Results) -> str:
    """The headline metric of each arm over the shots, with intervals; every seed a small dot."""
    figure, axes = axes_of(4.6, 3.2, "labelled training patients", label(results.headline))
    order = [shots_text(k) for k in dict.fromkeys(row.shots for row in results.table)]
    arms = list(dict.fromkeys(row.arm for row in results.table))
    colours = colours_of(arms)
    for i, arm in enumerate(arms):
        rows = [row for row in results.table if row.arm == arm and row.metrics[results.headline].value is not None]
        at = [order.index(shots_text(row.shots)) + 0.12 * (i - (len(arms) - 1) / 2) for row in rows]
        values = [row.metrics[results.headline] for row in rows]
        middle = np.array([v.value for v in values], float)
        low = np.array([v.low if v.low is not None else v.value for v in values], float)
        high = np.array([v.high if v.high is not None else v.value for v in values], float)
        spread = np.abs(np.array([middle - low, high - middle]))
        axes.errorbar(at, middle, spread, fmt="o-", color=colours[arm], capsize=4, label=name_of(arm), markersize=6)
        for x, value in zip(at, middle, strict=True):
            axes.annotate(
                f"{value:.3f}", (x, value), (7, 4), textcoords="offset points", fontsize=8, color=colours[arm]
            )
    axes.set_xticks(range(len(order)), order)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return inline(figure)


def loss_curves(cells: Sequence[TrialResult]) -> str:
    """Training loss over the steps, a line for each model, smoothed a little."""
    figure, axes = axes_of(4.6, 3.2, "step", "training loss")
    seen: set[str] = set()
    colours = colours_of(cell.arm for cell in cells)
    for cell, history in [(each, one) for each in cells for one in each.histories if one.loss]:
        steps, losses = np.array(history.loss, float).T
        window = max(1, len(losses) // 25)
        smooth = np.convolve(
            np.pad(losses, (window // 2, window - 1 - window // 2), "edge"), np.ones(window) / window, "valid"
        )
        legend = name_of(cell.arm) if cell.arm not in seen else None
        axes.plot(steps, smooth, color=colours[cell.arm], linewidth=1.5, alpha=0.85, label=legend)
        seen.add(cell.arm)
        top = float(np.percentile(smooth, 97))
        axes.set_ylim(min(0.0, float(smooth.min())), max(top * 1.15, axes.get_ylim()[1] if len(seen) > 1 else 0))
    axes.legend(frameon=False, fontsize=9)
    return inline(figure)


def scores_of_cases(by_arm: dict[str, list[Record]], score: str) -> str:
    """Every test case's score: paired where there are two arms, sorted where there is one."""
    if len(by_arm) == 2:
        first, second = (({r["case"]: r["score"] for r in records}) for records in by_arm.values())
        pairs = [(second[c], first[c]) for c in first if first[c] is not None and second.get(c) is not None]
        x, y = np.array(pairs, float).reshape(-1, 2).T
        figure, axes = axes_of(3.4, 3.2, f"{score}, from scratch", f"{score}, pre-trained")
        ends = [min(x.min(initial=1), y.min(initial=1)) - 0.02, max(x.max(initial=0), y.max(initial=0)) + 0.02]
        axes.plot(ends, ends, color=FAINT, linewidth=1)
        axes.scatter(x, y, s=16, color=COLOURS["full"], alpha=0.7, linewidth=0)
        axes.set_title(f"better in {int((y > x).sum())} of {len(x)} cases", fontsize=9, color=INK, loc="left")
        return inline(figure)
    (arm, records) = next(iter(by_arm.items()))
    values = sorted(r["score"] for r in records if r["score"] is not None)
    figure, axes = axes_of(3.4, 3.2, "test cases, worst first", score)
    axes.bar(range(len(values)), values, color=colours_of([arm])[arm], width=1.0 if len(values) > 60 else 0.8)
    return inline(figure)


def validation_curves(cells: Sequence[TrialResult]) -> str:
    """The mean score of the held-back cases over the steps, a line for each model; a ring where its weights are of."""
    figure, axes = axes_of(4.6, 3.2, "step", "mean score, held-back cases")
    seen: set[str] = set()
    colours = colours_of(cell.arm for cell in cells)
    for cell, history in [(each, one) for each in cells for one in each.histories if one.validation]:
        steps, values = np.array(history.validation, float).T
        axes.plot(steps, values, color=colours[cell.arm], label=None if cell.arm in seen else name_of(cell.arm))
        kept = steps == history.best_step
        axes.plot(steps[kept], values[kept], "o", color=colours[cell.arm], markerfacecolor="none", markersize=8)
        seen.add(cell.arm)
    axes.legend(frameon=False, fontsize=9)
    return inline(figure)
