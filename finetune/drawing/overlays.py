"""One case of the report as an inline image: what is true and what was predicted, upon the scan."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scanfoundry.finetune.drawing.canvas import inline
from scanfoundry.finetune.task_parts import Picture

Draw = Callable[[Axes, Picture, int], None]  # upon the scan: a picture of a case of so many classes

TRUTH, PREDICTION = "#35c46a", "#ff4fa0"
SHOWN_SCORE = 0.2  # boxes below it count in the numbers; drawn, they would hide the scan
SHOWN_SALIENCY = 0.5  # of the strongest place


def overlay(picture: Picture, draw: Draw, n_classes: int) -> str:
    """The scan of one case as an inline image, with what `draw` puts upon it."""
    image = picture["image"].astype(np.float32)
    figure = Figure((2.6, 2.6 * min(1.6, max(0.6, image.shape[0] / image.shape[1]))))
    axes = figure.add_axes((0, 0, 1, 1))
    low, high = np.percentile(image, [0.5, 99.5])
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bilinear")
    axes.set_axis_off()
    draw(axes, picture, n_classes)
    return inline(figure, dpi=130, margin=0)


def contours(axes: Axes, picture: Picture, n_classes: int) -> None:
    """Outlines of the label maps `truth` and `prediction`, each class in a style of its own."""
    styles = ["solid", (0, (4, 1.5)), (0, (1, 1))]
    for part, colour in (("truth", TRUTH), ("prediction", PREDICTION)):
        for k in range(1, n_classes + 1):
            mask: npt.NDArray = np.pad(picture[part] == k, 1)
            if mask.any():
                y, x = np.arange(-1, mask.shape[0] - 1), np.arange(-1, mask.shape[1] - 1)
                style = [styles[(k - 1) % len(styles)]]
                axes.contour(x, y, mask, [0.5], colors=colour, linewidths=1.4, linestyles=style)


def boxes(axes: Axes, picture: Picture, n_classes: int) -> None:
    """The boxes `truth`, and those of `boxes` whose score is not low, with their scores."""
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


def saliency(axes: Axes, picture: Picture, n_classes: int) -> None:
    """A picture of `inference.saliency.picture_with_saliency`: warm where it speaks for the predicted class; a line
    around what speaks for the true one, where that is another."""
    if "saliency" not in picture:
        return
    found, truth = (picture[name].astype(np.float32) for name in ("saliency", "saliency_truth"))
    axes.imshow(found, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * found, interpolation="bilinear")
    if not np.array_equal(found, truth) and truth.max() > SHOWN_SALIENCY:
        axes.contour(truth, [SHOWN_SALIENCY], colors=TRUTH, linewidths=1.4)
