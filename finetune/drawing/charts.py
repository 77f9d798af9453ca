"""Charts of the records of test cases, as inline images; a task shows those that suit it."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.drawing.canvas import COLOURS, FAINT, INK, axes_of, colours_of, inline, name_of, plain
from scanfoundry.finetune.metrics.froc import FALSE_POSITIVES, froc_curve, hits_at
from scanfoundry.finetune.metrics.weighted import Record


def confusion(records: Sequence[Record], classes: Sequence[str]) -> str:
    """Counts of true class (rows) by predicted class (columns), shaded by share of the row."""
    counts = np.zeros((len(classes), len(classes)), int)
    for record in records:
        counts[record["label"], int(np.argmax(record["probabilities"]))] += 1
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = axes_of(3.4, 3.2, "predicted", "true")
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
    figure, axes = axes_of(3.4, 3.2, "confidence", "accuracy")
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


def froc(by_arm: Mapping[str, list[Record]], iou: float, classes: Sequence[str]) -> str:
    """Sensitivity over false positives per scan, 1/8 to 8, of each arm; of several classes a line each."""
    figure, axes = axes_of(3.4, 3.2, "false positives per scan", f"sensitivity at IoU {iou:g}")
    ticks, colours = [float(at) for at in FALSE_POSITIVES.values()], colours_of(by_arm)
    for arm, records in by_arm.items():
        for label in range(len(classes)):
            wrong, found = froc_curve(records, iou, label)
            wrong, found = np.append(np.maximum(wrong, ticks[0] / 2), 2 * ticks[-1]), np.append(found, found[-1])
            name = name_of(arm) + (f", {plain(classes[label])}" if len(classes) > 1 else "")
            style = ("solid", "dashed", "dotted")[label % 3]
            axes.step(wrong, found, where="post", color=colours[arm], linestyle=style, linewidth=1.5, label=name)
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
    figure, axes = axes_of(3.4, 3.2, "true value", "predicted value")
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, color=FAINT, linewidth=1)
    axes.scatter(truth, predicted, s=16, color=COLOURS["full"], alpha=0.7, linewidth=0)
    return inline(figure)


def precision_recall(by_arm: Mapping[str, list[Record]], iou: str) -> str:
    """Precision over recall of the pooled boxes of each arm."""
    figure, axes = axes_of(3.4, 3.2, "recall", f"precision at IoU {iou}")
    colours = colours_of(by_arm)
    for arm, records in by_arm.items():
        scores = np.concatenate([np.array(r["scores"], float) for r in records])
        hits = np.concatenate([hits_at(r, float(iou)) for r in records])[np.argsort(-scores, kind="stable")]
        found = np.cumsum(hits)
        recall = found / max(1, sum(sum(r["truths"]) for r in records))
        axes.plot(recall, found / np.arange(1, len(hits) + 1), color=colours[arm], label=name_of(arm))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=9)
    return inline(figure)
