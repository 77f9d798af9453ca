"""What a labelled data set is to fine-tuning, whatever it lies in."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from scanfoundry.configs.errors import Mistakes
from scanfoundry.configs.geometry import Size3D, Spacing3D
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.boxes import Boxes


class Grid(NamedTuple):
    """The grid of a case: that of its first channel."""

    name: str  # of the channel's source, for messages
    shape: Size3D
    spacing: Spacing3D  # mm


class ScanSource(Protocol):
    """Where one scan can be read from: a file, an entry of an .npz, a scan in shards. `str` names it to its user."""

    def read(self) -> Scan:
        """The scan; UserError, naming the source, where it cannot be read."""
        ...


UNLABELLED = "images without a label"  # the reason under which they are counted as left out

Target = ScanSource | int | float | Boxes


class Stated(NamedTuple):
    """What somebody says of the numbers in label maps: the classes by value, None where nobody does; values that are
    left out of everything."""

    values: dict[int, str] | None = None
    ignored: tuple[int, ...] = ()

    @property
    def classes(self) -> list[str] | None:
        """In the order of their values; several values may be of one."""
        return None if self.values is None else list(dict.fromkeys(self.values.values()))


@dataclass(frozen=True)
class Case:
    """One scan with its label, or several of one grid. Only `key` and `patient`, keyed hashes, ever leave the machine.

    images    one for each of the data set's channels; None where that channel is missing, never all of them
    target    label map or mask; class index; value; boxes (none of them where somebody looked, and there is none);
              None where the data set has no label of it
    stated    of the values of a label map or mask
    drawn_on  (D, H, W) of what the boxes were drawn on, None where nobody says
    """

    key: str
    patient: str
    images: tuple[ScanSource | None, ...]
    target: Target | None
    drawn_on: tuple[int | None, int | None, int | None] = (None, None, None)
    stated: Stated | None = field(default=None, compare=False)

    @property
    def image(self) -> ScanSource:
        """The first channel that is there: its grid is the case's."""
        return next(image for image in self.images if image is not None)


@dataclass
class CaseList:
    """What was found.

    cases       in the data set's own order
    classes     None where they stand in the label maps; [] for values
    left_out    what had to stay out, counted by reason
    channels    names of the input channels; modalities: of each, 'ct' is clipped in HU
    official    'train', 'val' or 'test' by the key of a case, where the data set says so
    names       what its user calls a case, by its key: for messages and split files, never written down
    warnings    what a reader of the numbers should know
    site        fingerprint of the key that the hashes are of
    unlabelled  scans without a label, each a case without a target; none that the data set calls a test scan
    mistakes    what has to be mended before anything is trained: `cases` are without it
    """

    cases: list[Case]
    classes: list[str] | None
    left_out: dict[str, int] = field(default_factory=dict)
    channels: list[str] = field(default_factory=lambda: ["image"])
    modalities: list[str] = field(default_factory=lambda: ["unknown"])
    official: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    site: str = ""
    unlabelled: list[Case] = field(default_factory=list)
    mistakes: Mistakes = field(default_factory=lambda: Mistakes("the data set"))
