"""Figures of the report as inline images. Drawn without pyplot, so that no global state is touched."""

import base64
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scanforge.finetune.adapter import Picture
from scanforge.finetune.cells import CellResult
from scanforge.finetune.metrics.froc import hits_at
from scanforge.finetune.metrics.intervals import Record
from scanforge.finetune.results import Results

COLOURS = {
    "full": "#0f6e8c", "staged": "#3f8f4f", "frozen": "#6a5aa8", "lora": "#a83a64", "linear_probe": "#4a7fc1",
    "attentive_probe": "#1d8f86", "knn": "#7b6b3c", "scratch": "#c2701c",
}  # fmt: skip
NAMES = {
    "full": "pre-trained", "staged": "pre-trained, frozen first", "frozen": "pre-trained, encoder frozen",
    "lora": "pre-trained, LoRA", "linear_probe": "linear probe", "attentive_probe": "attentive probe",
    "knn": "nearest neighbours", "scratch": "from scratch",
}  # fmt: skip
TRUTH, PREDICTION = "#35c46a", "#ff4fa0"
SHOWN_SCORE = 0.2  # boxes below it count in the numbers; drawn, they would hide the scan
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
SHOWN_SALIENCY = 0.5  # of the strongest place
INK, FAINT = "#22303a", "#d9e0e4"


def label(metric: str) -> str:
    """A metric's name as people write it."""
    first, _, rest = metric.partition(" ")
    kind, _, iou = first.partition("@")
    if kind in BOX_METRICS:
        return " ".join(filter(None, [f"{BOX_METRICS[kind]} at IoU {iou.replace(':', ' to ')}", rest]))
    return " ".join(filter(None, [WRITTEN.get(first, first), rest]))


def _image(figure: Figure, dpi: int = 160, margin: float = 0.05) -> str:
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
    axes.legend(frameon=False, fontsize=9)
    return _image(figure)


def loss_curves(cells: Sequence[CellResult]) -> str:
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
    return _image(figure)


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
        return _image(figure)
    (arm, records) = next(iter(by_arm.items()))
    values = sorted(r["score"] for r in records if r["score"] is not None)
    figure, axes = _axes(3.4, 3.2, "test cases, worst first", score)
    axes.bar(range(len(values)), values, color=COLOURS[arm], width=1.0 if len(values) > 60 else 0.8)
    return _image(figure)


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
    axes.set_xticks(range(len(classes)), classes, rotation=20, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    return _image(figure)


def reliability(records: Sequence[Record], bins: int = 10) -> str:
    """Accuracy over confidence; on the diagonal, 70% sure is right 7 times in 10. Numbers: cases per bin."""
    probabilities = np.array([record["probabilities"] for record in records])
    hit = probabilities.argmax(1) == np.array([record["label"] for record in records])
    confidence = probabilities.max(1)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    figure, axes = _axes(3.4, 3.2, "confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    for b in np.unique(index):
        inside = index == b
        axes.bar((b + 0.5) / bins, hit[inside].mean(), 0.9 / bins, color=COLOURS["full"], alpha=0.8)
        axes.text((b + 0.5) / bins, hit[inside].mean() + 0.015, str(inside.sum()), ha="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.08)
    return _image(figure)


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
    return _image(figure)


def overlay(picture: Picture, task: str, n_classes: int) -> str:
    """One case: truth and prediction as contours or boxes upon the scan; for a class, where the model looked."""
    image = picture["image"].astype(np.float32)
    figure = Figure((2.6, 2.6 * min(1.6, max(0.6, image.shape[0] / image.shape[1]))))
    axes = figure.add_axes((0, 0, 1, 1))
    low, high = np.percentile(image, [0.5, 99.5])
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bilinear")
    axes.set_axis_off()
    if task in DRAW:
        DRAW[task](axes, picture, n_classes)
    return _image(figure, dpi=130, margin=0)


def _contours(axes: Axes, picture: Picture, n_classes: int) -> None:
    styles = ["solid", (0, (4, 1.5)), (0, (1, 1))]
    for part, colour in (("truth", TRUTH), ("prediction", PREDICTION)):
        for k in range(1, n_classes + 1):
            mask: npt.NDArray = np.pad(picture[part] == k, 1)
            if mask.any():
                y, x = np.arange(-1, mask.shape[0] - 1), np.arange(-1, mask.shape[1] - 1)
                style = [styles[(k - 1) % len(styles)]]
                axes.contour(x, y, mask, [0.5], colors=colour, linewidths=1.4, linestyles=style)


def _boxes(axes: Axes, picture: Picture, n_classes: int) -> None:
    for box in picture["truth"]:
        axes.add_patch(_rectangle(box, TRUTH, 1.8))
    for box, score in zip(picture["boxes"], picture["scores"], strict=True):
        if score >= SHOWN_SCORE:
            axes.add_patch(_rectangle(box, PREDICTION, 0.6 + 1.2 * float(score)))
            axes.text(box[1], max(box[0] - 2, 5), f"{score:.2f}", color=PREDICTION, fontsize=7, fontweight="bold")


def _rectangle(box: npt.NDArray, colour: str, width: float) -> Rectangle:
    # Edges at whole numbers are half a pixel before imshow's pixel centres.
    low, size = (box[1] - 0.5, box[0] - 0.5), (box[3] - box[1], box[2] - box[0])
    return Rectangle(low, size[0], size[1], fill=False, edgecolor=colour, linewidth=width)


def _saliency(axes: Axes, picture: Picture, n_classes: int) -> None:
    """A picture of `explain.picture_with_saliency`: warm where it speaks for the predicted class; a line around what
    speaks for the true one, where that is another."""
    if "saliency" not in picture:
        return
    found, truth = (picture[name].astype(np.float32) for name in ("saliency", "saliency_truth"))
    axes.imshow(found, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * found, interpolation="bilinear")
    if not np.array_equal(found, truth) and truth.max() > SHOWN_SALIENCY:
        axes.contour(truth, [SHOWN_SALIENCY], colors=TRUTH, linewidths=1.4)


DRAW: dict[str, Callable[[Axes, Picture, int], None]] = {
    "segmentation": _contours,
    "detection": _boxes,
    "classification": _saliency,
}
