"""What a task says of itself outside of training: in the report, in exports, and in files of predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy.typing as npt

from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.spec import Spec

Picture = dict[str, npt.NDArray]  # small arrays that the report draws a case from
TableRow = dict[str, Any]  # of the table of predictions: value by column
BACKGROUND = "(background)"  # the row of a segmentation's head that is of no class; classes have other names
LABEL_MAP, FRACTIONS, BOXES = "label map", "fractions", "boxes"  # kinds of files; a plug-in may have others


@dataclass(frozen=True)
class ReportTexts:
    """The task's sentences in the report."""

    score: str  # what the score of a case is
    notes: str  # how the metrics are defined and read
    limits: str  # what the numbers do not cover
    pictures: str = ""  # what the pictures of single cases show
    truth: str = "truth"  # legend of their first colour
    prediction: str = "prediction"  # and of their second one
    outlines: bool = False  # each class is drawn as an outline in a style of its own
    light: bool = False  # pictures have bars beside them, on a light ground


class BundleOutput(NamedTuple):
    """The prediction in the words of the MONAI bundle specification, and what running the bundle writes."""

    type: str
    format: str
    written: str


@dataclass(frozen=True)
class ExportTexts:
    """What an export says of the network's output.

    Attributes:
        prediction: what the exported preprocessing.py makes of it: 'label_map', 'probabilities' or 'value'; '' where it
            has no function for that.
        meaning: of the output; '' where each output is told by its name.
        steps: what follows after the network, for people.
        bundle: None where a MONAI bundle cannot be written.
    """

    prediction: str = ""
    meaning: str = ""
    steps: str = "What is made of the outputs is left out here: it is the task's own."
    bundle: BundleOutput | None = None


class OutputFiles(Protocol):
    """Where the files of one predicted scan go, and what the user asked for."""

    @property
    def scan(self) -> Scan:
        """What is predicted on."""

    @property
    def probabilities(self) -> bool:
        """Whether they are asked for."""

    @property
    def uncertainty(self) -> bool:
        """Whether it is asked for."""

    def takes(self, kind: str, made: Any) -> bool:
        """Whether a format of the kind is asked for, or suits this scan and what is to be written."""

    def put(self, kind: str, made: Any, name: str = "") -> str | None:
        """Write one file.

        Args:
            kind: `LABEL_MAP`, `FRACTIONS`, `BOXES`, or one that a plug-in's formats know.
            made: the label map (D, H, W) as codes of the classes, numbers from 0 to 1, `Boxes`, ...
            name: goes between the scan's name and the suffix.

        Returns:
            The file's name in the table; None where no format could hold it, which was told.

        Raises:
            UserError: the format that was asked for cannot hold it, or the file is there already.
        """


class TaskPresentation:
    """What the report, the exports and the files of predictions take from a task."""

    spec: Spec
    headline: ClassVar[str]  # the metric the report leads with
    overview: ClassVar[tuple[str, ...]]  # the metrics of the report's table; all of them are in results.json
    report: ClassVar[ReportTexts]
    export: ClassVar[ExportTexts] = ExportTexts()
    table: ClassVar[str] = "predictions.csv"  # of `predict`; .json where rows hold more than numbers and texts
    conventions: ClassVar[Mapping[str, str]] = {}  # what the numbers of a table in JSON mean
    files: ClassVar[tuple[str, ...]] = ()  # kinds of files that `Adapter.write` may put beside the table
    options: ClassVar[frozenset[str]] = frozenset()  # of `predict` that it reads: probabilities, uncertainty

    @classmethod
    def charts(
        cls, shown: list[Record], by_arm: Mapping[str, list[Record]], classes: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Captions and inline images (see `drawing.charts`) that the report has of this task.

        Args:
            shown: records of the test cases by the model that is kept.
            by_arm: records by the name of the arm, of the same seed and shots.
            classes: names of the classes.
        """
        return []

    @staticmethod
    def draw(axes: Any, picture: Picture, n_classes: int) -> None:
        """Draw truth and prediction upon the scan of a picture, see `drawing.overlays`."""

    @staticmethod
    def bars(picture: Picture, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Bars beside a picture: `name`, `value` from 0 to 1, and whether it is the `true` one."""
        return []

    def output_names(self) -> list[str]:
        """What each channel of the exported network's output is of."""
        return list(self.spec.classes)

    def array_names(self, count: int) -> list[str]:
        """Names of the arrays that the exported network gives, of which there are `count`."""
        return ["logits"]

    def export_steps(self) -> str:
        """What follows after the exported network, for people."""
        return self.export.steps

    def export_details(self, model: Any, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What else an export's description holds; `shapes` are those of the outputs for one image."""
        return {}
