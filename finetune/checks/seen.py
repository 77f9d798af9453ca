"""The values of all label maps of a data set."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scanfoundry.datasets.readers.grey_levels import FEW, WHITE, added, distinct, runs_of
from scanfoundry.datasets.readers.label_values import RawMask


@dataclass
class Seen:
    """What stands in the label maps that were read.

    look     whether it has to be seen if many values are regions
    counts   voxels by value of each case, in the order they were added
    sources  what to call each of them
    images   whether all are pictures; cut: how many were cut at half
    greys    places of the maps of lossy files that are not clearly black and white
    runs     see `grey_levels.runs_of`, over all maps of many values
    colours  of each value that was drawn by a palette, and where first; other: of which value and where another was
    """

    look: bool = True
    counts: list[dict[int, int]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    images: bool = True
    cut: int = 0
    greys: list[int] = field(default_factory=list)
    runs: dict[int, tuple[int, int]] = field(default_factory=dict)
    colours: dict[int, tuple[list[int], str]] = field(default_factory=dict)
    other: tuple[int, list[int], str] | None = None

    def add(self, source: object, raw: RawMask, image: bool) -> None:
        """One more label map."""
        found = distinct(raw.numbers)
        if self.look and len(found) > FEW:
            self.runs = added(self.runs, runs_of(raw.numbers))
        if raw.lossy and not found.keys() <= {0, WHITE}:
            self.greys.append(len(self.counts))
        if raw.palette is not None and self.other is None:
            self._compare(found, raw.palette, str(source))
        self.images &= image
        self.cut += raw.cut
        self.counts.append(found)
        self.sources.append(str(source))

    def _compare(self, values: Iterable[int], palette: npt.NDArray[np.uint8], source: str) -> None:
        for value in (value for value in values if value < len(palette)):
            colour = palette[value].tolist()
            if self.colours.setdefault(value, (colour, source))[0] != colour:
                self.other = value, colour, source
                return

    @property
    def values(self) -> list[int]:
        """All but 0, in ascending order."""
        return sorted({value for each in self.counts for value in each if value != 0})

    def holding(self, value: int) -> str:
        """The first map that has the value."""
        return next(source for source, each in zip(self.sources, self.counts, strict=True) if value in each)
