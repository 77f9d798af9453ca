"""The scans of one source that serve crops of one shape, and the order of their visits, also after the source grew."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.sampling.shuffle import WindowShuffle


class Rest(NamedTuple):
    """The visits that end the pass which a stream was in when its source grew."""

    stream: "Stream"  # of before
    begun: int  # visits that it has had
    visits: int  # that are left


@dataclass(frozen=True)
class Stream:
    """The scans of one source that serve crops of one shape, a row for each, in one segment of a run.

    The stream of the next segment first ends the pass that this one is in, then passes over its own rows. So each scan
    is visited once in each pass, and new scans join at a pass's beginning.

    Attributes:
        number: among the streams of all segments.
        source: number of the source.
        crop: the shape.
        group: that its share is a part of.
        shards: number in the manifest, per row.
        samples: number in the shard's index, per row.
        share: of the mixture.
        visits: the order of its passes.
        studies: per row where positives ask for them, else empty.
        rest: of the stream in the segment before; None where there was none.
        gone: rows that a later segment samples no more, since a patient turned out to be held out.
    """

    number: int
    source: int
    crop: Size3D
    group: str
    shards: NDArray[np.uint32]
    samples: NDArray[np.uint32]
    share: float
    visits: WindowShuffle
    studies: NDArray[np.bytes_]
    rest: Rest | None = None
    gone: frozenset[int] = frozenset()

    @property
    def key(self) -> tuple[int, Size3D, str]:
        """What the stream has in common with those of other segments that it continues."""
        return self.source, self.crop, self.group

    def visit(self, number: int) -> tuple[int, int]:
        """What visit `number` of this segment goes to: the number of a stream, and a row of it."""
        if self.rest is not None:
            if number < self.rest.visits:
                return self.rest.stream.visit(self.rest.begun + number)
            number -= self.rest.visits
        return self.number, self.visits(number)

    def ending(self, begun: int) -> Rest:
        """What is left of the pass that it is in after `begun` visits; nothing where the next one begins a pass."""
        first = 0 if self.rest is None else self.rest.visits
        return Rest(self, begun, first - begun if begun < first else (first - begun) % self.visits.rows)

    def sampled(self, row: int) -> int:
        """The row, or the next one in place of one that is gone."""
        while row in self.gone:
            row = (row + 1) % self.visits.rows
        return row

    def within(self, shards: NDArray[np.uint32], samples: NDArray[np.uint32]) -> "Stream":
        """The same stream, without what is gone from the rows of a later segment; it shares their memory if it can."""
        count = len(self.shards)
        if np.array_equal(self.shards, shards[:count]) and np.array_equal(self.samples, samples[:count]):
            return replace(self, shards=shards[:count], samples=samples[:count])
        gone = ~np.isin(_places(self.shards, self.samples), _places(shards, samples))
        return replace(self, gone=frozenset(np.flatnonzero(gone).tolist()))


def _places(shards: NDArray[np.uint32], samples: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each scan of a source."""
    return shards.astype(np.uint64) << np.uint64(32) | samples
