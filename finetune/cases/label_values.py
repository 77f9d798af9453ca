"""What the numbers in label maps mean: which class each is, and what is written for a class in a prediction."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from scanfoundry.configs.base import Config
from scanfoundry.datasets.readers import ReadError
from scanfoundry.datasets.readers.grey_levels import distinct, rounded

IGNORE = 255  # in memory: voxels that nobody has looked at, in no loss and no metric
MOST = 254  # classes at most, beside the background and IGNORE

Codes = npt.NDArray[np.uint8]


class LabelValues(Config):
    """The classes 1..n of label maps by the numbers in the files, 0 the background in both."""

    read: dict[int, int]  # number in a file: its class, or 255 where it is left out of everything
    written: list[int]  # by class: its number in predictions, as in the files
    nearest: bool = False  # greys of images take the nearest value, where it is clear which

    @model_validator(mode="after")
    def _consistent(self) -> "LabelValues":
        classes = range(1, len(self.written) + 1)
        if 0 in self.read or any(code not in classes and code != IGNORE for code in self.read.values()):
            raise ValueError("values are of the background or of classes that are not there")
        return self

    @property
    def ignores(self) -> bool:
        """Whether some voxels are left out."""
        return IGNORE in self.read.values()

    @property
    def plain(self) -> bool:
        """Whether the files hold 1..n as they are."""
        count = len(self.written)
        return self.read == {k: k for k in range(1, count + 1)} and self.written == [*range(1, count + 1)]

    def codes(self, counts: Mapping[int, int], image: bool) -> dict[int, int]:
        """By value of a file, of which there are so many voxels, its class, 0 or IGNORE. ReadError for one that has
        none."""
        known = {0: 0} | self.read
        strange = [value for value in counts if value not in known]
        drawn = {value: value for value in counts}
        if strange and self.nearest and image:
            if (found := rounded(counts, [*known])) is None:
                raise ReadError(f"mask: its greys are not clearly the stated values {sorted(known)}; save masks as PNG")
            drawn = found
        elif strange:
            raise ReadError(f"mask: holds {strange[-1]}, which is none of the values of the classes: {sorted(known)}")
        return {value: known[drawn[value]] for value in counts}

    def encode(self, numbers: npt.NDArray[np.integer], image: bool = False) -> Codes:
        """Numbers of a file (D, H, W) as classes, and IGNORE; ReadError as `codes`."""
        if self.plain and numbers.min() >= 0 and numbers.max() <= len(self.written):
            return numbers.astype(np.uint8)
        codes = self.codes(distinct(numbers), image)
        if numbers.dtype.kind == "u" and numbers.dtype.itemsize <= 2:
            table = np.zeros(max(codes) + 1, np.uint8)
            table[[*codes]] = [*codes.values()]
            return table[numbers]
        keys = sorted(codes)
        return np.array([codes[key] for key in keys], np.uint8)[np.searchsorted(keys, numbers)]

    def decode(self, labels: Codes) -> npt.NDArray[np.integer]:
        """Classes (D, H, W) as the numbers of the files, in the smallest type that holds them all."""
        if self.written == [*range(1, len(self.written) + 1)]:
            return labels
        kind = np.result_type(np.uint8, *(np.min_scalar_type(value) for value in self.written))
        return np.array([0, *self.written], kind)[labels]


def consecutive(count: int) -> LabelValues:
    """Of maps that hold the classes 1..n as they are."""
    return LabelValues(read={k: k for k in range(1, count + 1)}, written=[*range(1, count + 1)])


def of_names(names: Mapping[int, str], ignored: Sequence[int] = ()) -> tuple[list[str], LabelValues]:
    """The classes of named values, several of one name as one, in the order of the values, and what is read as which.

    Of the values of one class the first is written.
    """
    kept = {value: name for value, name in names.items() if value not in ignored}
    classes = list(dict.fromkeys(kept.values()))
    read = {value: classes.index(name) + 1 for value, name in kept.items()}
    written = [next(value for value, code in read.items() if code == k) for k in range(1, len(classes) + 1)]
    return classes, LabelValues(read=read | dict.fromkeys(ignored, IGNORE), written=written)
