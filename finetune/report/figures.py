"""Figures of the report as inline images. Drawn without pyplot, so that no global state is touched."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scanfoundry.configs.text import printable
from scanfoundry.finetune.metrics.froc import FALSE_POSITIVES, froc_curve, hits_at
from scanfoundry.finetune.metrics.intervals import Record
from scanfoundry.finetune.study.results import Results
from scanfoundry.finetune.study.trial import TrialResult

COLOURS = {
    "full": "#0f6e8c", "staged": "#3f8f4f", "frozen": "#6a5aa8", "lora": "#a83a64", "linear_probe": "#4a7fc1",
    "attentive_probe": "#1d8f86", "knn": "#7b6b3c", "scratch": "#c2701c",
}  # fmt: skip
NAMES = {
    "full": "pre-trained", "staged": "pre-trained, frozen first", "frozen": "pre-trained, encoder frozen",
    "lora": "pre-trained, LoRA", "linear_probe": "linear probe", "attentive_probe": "attentive probe",
    "knn": "nearest neighbours", "scratch": "from scratch",
}  # fmt: skip
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
INK, FAINT = "#22303a", "#d9e0e4"


def label(metric: str) -> str:
    """A metric's name as people write it."""
    first, _, rest = metric.partition(" ")
    kind, _, iou = first.partition("@")
    if kind in BOX_METRICS:
        return " ".join(filter(None, [f"{BOX_METRICS[kind]} at IoU {iou.replace(':', ' to ')}", rest]))
    return " ".join(filter(None, [WRITTEN.get(first, first), rest]))


def inline(figure: Figure, dpi: int = 160, margin: float = 0.05) -> str:
    """A figure as a PNG that stands in the page itself."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=dpi, bbox_inches="tight", pad_inches=margin)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _axes(width: float, height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure((width, height))
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def metric_by_shots(results: Results) -> str:
    """The headline metric of each arm over the shots, with intervals; every seed a small dot."""
    figure, axes = _axes(4.6, 3.2, "labelled training patients", label(results.headline))
    order = [str(k) for k in dict.fromkeys(row.shots for row in results.table)]
    arms = list(dict.fromkeys(row.arm for row in results.table))
    for i, arm in enumerate(arms):
        rows = [row for row in results.table if row.arm == arm and row.metrics[results.headline].value is not None]
        at = [order.index(str(row.shots)) + 0.12 * (i - (len(arms) - 1) / 2) for row in rows]
        values = [row.metrics[results.headline] for row in rows]
        middle = np.array([v.value for v in values], float)
        low = np.array([v.low if v.low is not None else v.value for v in values], float)
        high = np.array([v.high if v.high is not None else v.value for v in values], float)
        spread = np.abs(np.array([middle - low, high - middle]))
        axes.errorbar(at, middle, spread, fmt="o-", color=COLOURS[arm], capsize=4, label=NAMES[arm], markersize=6)
        for x, value in zip(at, middle, strict=True):
            axes.annotate(
                f"{value:.3f}", (x, value), (7, 4), textcoords="offset points", fontsize=8, color=COLOURS[arm]
            )
    axes.set_xticks(range(len(order)), order)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return inline(figure)


def loss_curves(cells: Sequence[TrialResult]) -> str:
    """Training loss over the steps, a line for each model, smoothed a little."""
    figure, axes = _axes(4.6, 3.2, "step", "training loss")
    seen: set[str] = set()
    for cell, history in [(each, one) for each in cells for one in each.histories if one.loss]:
        steps, losses = np.array(history.loss, float).T
        window = max(1, len(losses) // 25)
        smooth = np.convolve(
            np.pad(losses, (window // 2, window - 1 - window // 2), "edge"), np.ones(window) / window, "valid"
        )
        legend = NAMES[cell.arm] if cell.arm not in seen else None
        axes.plot(steps, smooth, color=COLOURS[cell.arm], linewidth=1.5, alpha=0.85, label=legend)
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
        figure, axes = _axes(3.4, 3.2, f"{score}, from scratch", f"{score}, pre-trained")
        ends = [min(x.min(initial=1), y.min(initial=1)) - 0.02, max(x.max(initial=0), y.max(initial=0)) + 0.02]
        axes.plot(ends, ends, color=FAINT, linewidth=1)
        axes.scatter(x, y, s=16, color=COLOURS["full"], alpha=0.7, linewidth=0)
        axes.set_title(f"better in {int((y > x).sum())} of {len(x)} cases", fontsize=9, color=INK, loc="left")
        return inline(figure)
    (arm, records) = next(iter(by_arm.items()))
    values = sorted(r["score"] for r in records if r["score"] is not None)
    figure, axes = _axes(3.4, 3.2, "test cases, worst first", score)
    axes.bar(range(len(values)), values, color=COLOURS[arm], width=1.0 if len(values) > 60 else 0.8)
    return inline(figure)


def plain(name: str) -> str:
    """A class's name as matplotlib shows it: between two dollar signs it would be a formula, a control character has no
    glyph."""
    return printable(name).replace("\\", "/").replace("$", r"\$")


def confusion(records: Sequence[Record], classes: Sequence[str]) -> str:
    """Counts of true class (rows) by predicted class (columns), shaded by share of the row."""
    counts = np.zeros((len(classes), len(classes)), int)
    for record in records:
        counts[record["label"], int(np.argmax(record["probabilities"]))] += 1
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _axes(3.4, 3.2, "predicted", "true")
    axes.grid(False)
    axes.imshow(share, cmap="GnBu", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.6 else INK)
    names = [plain(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_yticks(range(len(names)), names)
    return inline(figure)


def reliability(bins: npt.NDArray[np.float64], voxels: bool) -> str:
    """Accuracy over confidence; on the diagonal, 70% sure is right 7 times in 10. `bins` as of `metrics.reliability`;
    the numbers are cases of each, or shares of the voxels."""
    figure, axes = _axes(3.4, 3.2, "confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    for b in np.flatnonzero(bins[:, 0]):
        count, _, right = bins[b]
        place, share = (b + 0.5) / len(bins), f"{100 * count / bins[:, 0].sum():.0f}%"
        axes.bar(place, right / count, 0.9 / len(bins), color=COLOURS["full"], alpha=0.8)
        text = share if voxels else f"{count:.0f}"
        axes.text(place, right / count + 0.015, text, ha="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.08)
    return inline(figure)


def froc(by_arm: dict[str, list[Record]], iou: float, classes: Sequence[str]) -> str:
    """Sensitivity over false positives per scan, 1/8 to 8, of each arm; of several classes a line each."""
    figure, axes = _axes(3.4, 3.2, "false positives per scan", f"sensitivity at IoU {iou:g}")
    ticks = [float(at) for at in FALSE_POSITIVES.values()]
    for arm, records in by_arm.items():
        for label in range(len(classes)):
            wrong, found = froc_curve(records, iou, label)
            wrong, found = np.append(np.maximum(wrong, ticks[0] / 2), 2 * ticks[-1]), np.append(found, found[-1])
            name = NAMES[arm] + (f", {plain(classes[label])}" if len(classes) > 1 else "")
            style = ("solid", "dashed", "dotted")[label % 3]
            axes.step(wrong, found, where="post", color=COLOURS[arm], linestyle=style, linewidth=1.5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlim(ticks[0], ticks[-1])
    axes.set_xticks(ticks, list(FALSE_POSITIVES))
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=8)
    return inline(figure)


def agreement(records: Sequence[Record]) -> str:
    """Predicted over true value of every test case; on the diagonal they are equal."""
    truth, predicted = (np.array([record[name] for record in records], float) for name in ("truth", "prediction"))
    figure, axes = _axes(3.4, 3.2, "true value", "predicted value")
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, color=FAINT, linewidth=1)
    axes.scatter(truth, predicted, s=16, color=COLOURS["full"], alpha=0.7, linewidth=0)
    return inline(figure)


def validation_curves(cells: Sequence[TrialResult]) -> str:
    """The mean score of the held-back cases over the steps, a line for each model; a ring where its weights are of."""
    figure, axes = _axes(4.6, 3.2, "step", "mean score, held-back cases")
    seen: set[str] = set()
    for cell, history in [(each, one) for each in cells for one in each.histories if one.validation]:
        steps, values = np.array(history.validation, float).T
        axes.plot(steps, values, color=COLOURS[cell.arm], label=None if cell.arm in seen else NAMES[cell.arm])
        kept = steps == history.best_step
        axes.plot(steps[kept], values[kept], "o", color=COLOURS[cell.arm], markerfacecolor="none", markersize=8)
        seen.add(cell.arm)
    axes.legend(frameon=False, fontsize=9)
    return inline(figure)


def precision_recall(by_arm: dict[str, list[Record]], iou: str) -> str:
    """Precision over recall of the pooled boxes of each arm."""
    figure, axes = _axes(3.4, 3.2, "recall", f"precision at IoU {iou}")
    for arm, records in by_arm.items():
        scores = np.concatenate([np.array(r["scores"], float) for r in records])
        hits = np.concatenate([hits_at(r, float(iou)) for r in records])[np.argsort(-scores, kind="stable")]
        found = np.cumsum(hits)
        recall = found / max(1, sum(sum(r["truths"]) for r in records))
        axes.plot(recall, found / np.arange(1, len(hits) + 1), color=COLOURS[arm], label=NAMES[arm])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=9)
    return inline(figure)
