"""The one form that boxes have between the files that they are read from and those that they are written to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Corners = npt.NDArray[np.float64]  # (N, 6): d0 h0 w0 d1 h1 w1
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one scan; there may be none.

    Attributes:
        corners: (N, 6) d0 h0 w0 d1 h1 w1 in voxels of the file, or of the grid that is named where they are moved to
            another; half-open: voxel i covers [i, i + 1). Those of an image reach from 0 to 1 along D.
        labels: (N,) index into the classes.
        scores: (N,) of predicted boxes, the best first; None of true ones.
    """

    corners: Corners
    labels: Ints
    scores: Floats | None = None

    @classmethod
    def of(cls, listed: Iterable[tuple[Sequence[float], int]]) -> "Boxes":
        """True boxes out of pairs of corners (d0, h0, w0, d1, h1, w1) and label."""
        pairs = list(listed)
        corners = np.array([corners for corners, _ in pairs], float).reshape(-1, 6)
        return cls(corners, np.array([label for _, label in pairs], np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Boxes"]) -> "Boxes":
        """The predicted boxes of all parts, one after the other."""
        corners, labels, scores = zip(*((part.corners, part.labels, part.surety) for part in parts), strict=True)
        return cls(np.concatenate(corners), np.concatenate(labels), np.concatenate(scores))

    @property
    def surety(self) -> Floats:
        """The scores of predicted boxes."""
        assert self.scores is not None
        return self.scores

    def take(self, index: Ints) -> "Boxes":
        """The boxes of these numbers, or those where a mask is true."""
        return Boxes(self.corners[index], self.labels[index], None if self.scores is None else self.scores[index])

    def scaled(self, factors: Sequence[float] | npt.NDArray) -> "Boxes":
        """The boxes on a grid that has `factors` times as many voxels along D, H, W."""
        return Boxes(self.corners * np.tile(factors, 2), self.labels, self.scores)

    def listed(self) -> list[tuple[tuple[float, ...], int]]:
        """Pairs of corners and label as plain numbers: what `of` takes."""
        return [(tuple(c), label) for c, label in zip(self.corners.tolist(), self.labels.tolist(), strict=True)]

    def __len__(self) -> int:
        """How many."""
        return len(self.corners)

    def __eq__(self, other: object) -> bool:
        """Whether all numbers are the same, in the same order."""
        if not isinstance(other, Boxes):
            return NotImplemented
        ours, theirs = ([] if each.scores is None else each.scores.tolist() for each in (self, other))
        return self.listed() == other.listed() and ours == theirs

    def __hash__(self) -> int:
        return hash(tuple(self.listed()))
