"""What all figures share: colours, the names of arms, axes, and an image that stands in the page itself."""

import base64
from collections.abc import Iterable
from io import BytesIO
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from scanfoundry.configs.text import printable
from scanfoundry.finetune.config.recipes import DISTILLED

COLOURS = {
    "full": "#0f6e8c", "warmup": "#b08a1e", "sawtooth": "#5c4a3d", "staged": "#3f8f4f", "frozen": "#6a5aa8",
    "lora": "#a83a64", "linear_probe": "#4a7fc1", "attentive_probe": "#1d8f86", "knn": "#7b6b3c", "scratch": "#c2701c",
}  # fmt: skip
NAMES = {
    "full": "pre-trained", "warmup": "pre-trained, warm-up to a lower rate", "sawtooth": "pre-trained, decoder first",
    "staged": "pre-trained, frozen first", "frozen": "pre-trained, encoder frozen", "lora": "pre-trained, LoRA",
    "linear_probe": "linear probe", "attentive_probe": "attentive probe", "knn": "nearest neighbours",
    "scratch": "from scratch",
}  # fmt: skip


def _darker(colour: str) -> str:
    red, green, blue = (0.6 * each for each in to_rgb(colour))
    return to_hex((red, green, blue))


COLOURS |= {f"{arm}{DISTILLED}": _darker(colour) for arm, colour in COLOURS.items()}
NAMES |= {f"{arm}{DISTILLED}": f"{name}, with a teacher" for arm, name in NAMES.items()}
OTHERS = ("#2f7bbf", "#c7622b", "#5b9a3c", "#8a56ac", "#b0364f", "#3a9aa1")  # of arms that have names of their own
INK, FAINT = "#22303a", "#d9e0e4"


def name_of(arm: str) -> str:
    """An arm as people call it; one of several checkpoints by its own name."""
    if arm in NAMES:
        return NAMES[arm]
    if arm.endswith(DISTILLED):
        return f"{name_of(arm.removesuffix(DISTILLED))}, with a teacher"
    start, _, recipe = arm.partition("_")
    return f"pre-trained by {start}" + NAMES.get(recipe, "").removeprefix("pre-trained")


def colours_of(arms: Iterable[str]) -> dict[str, str]:
    """A colour for each arm; those of named checkpoints take theirs in turn."""
    known = list(dict.fromkeys(arms))
    free = cycle(OTHERS)
    return {arm: COLOURS[arm] if arm in COLOURS else next(free) for arm in known}


def inline(figure: Figure, dpi: int = 160, margin: float = 0.05) -> str:
    """A figure as a PNG that stands in the page itself."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=dpi, bbox_inches="tight", pad_inches=margin)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def axes_of(width: float, height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one pair of axes in the style of the report."""
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


def plain(name: str) -> str:
    """A class's name as matplotlib shows it: between two dollar signs it would be a formula, a control character has no
    glyph."""
    return printable(name).replace("\\", "/").replace("$", r"\$")
