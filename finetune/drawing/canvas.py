"""What all figures share: colours, the names of arms, axes, and an image that stands in the page itself."""

import base64
from io import BytesIO

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
for _arm, _colour in list(COLOURS.items()):
    _red, _green, _blue = to_rgb(_colour)
    COLOURS[f"{_arm}{DISTILLED}"] = to_hex((0.6 * _red, 0.6 * _green, 0.6 * _blue))
NAMES |= {f"{arm}{DISTILLED}": f"{name}, with a teacher" for arm, name in NAMES.items()}
INK, FAINT = "#22303a", "#d9e0e4"


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
