"""Two-scan positives: which scan is the partner of which, and whether the two can be cropped at the same place."""

from collections.abc import Container, Mapping

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.crop import mix
from scanfoundry.datasets.shards.format import SampleEntry

_SPACING = 0.01  # relative difference that rounding in headers makes


class StudyPartners:
    """The scans of one source that serve one kind of crop, by study. A scan is (stream, row)."""

    def __init__(self, studies: Mapping[int, NDArray[np.bytes_]]) -> None:
        """studies: by stream, those of its rows; scans with an empty one have no companion."""
        sizes = [len(each) for each in studies.values()]
        self._first = dict(zip(studies, np.cumsum([0, *sizes]).tolist(), strict=False))
        self._stream = np.repeat(np.array(list(studies)), sizes)
        self._row = np.concatenate([np.arange(size) for size in sizes])
        every = np.concatenate(list(studies.values()))
        names, self._study = np.unique(every, return_inverse=True)
        self._order = np.argsort(self._study, kind="stable")
        self._bounds = np.searchsorted(self._study[self._order], np.arange(len(names) + 1))
        self._unknown = every == b""
        self.scans = len(every)
        counts = np.diff(self._bounds)[self._study]
        self.alone = int(((counts == 1) | self._unknown).sum())  # scans without a companion

    def of(self, stream: int, row: int, seed: int, bad: Container[tuple[int, int]]) -> tuple[int, int]:
        """The partner of a scan.

        It depends on what of the study can be read, not on when it was found that something cannot.

        Args:
            stream: of the scan.
            row: of the scan in its stream.
            seed: chooses among the other scans of the study.
            bad: scans that cannot be read; the next scan of the study is taken in their place.

        Returns:
            (stream, row); the scan itself where it has no partner.
        """
        number = self._first[stream] + row
        if self._unknown[number]:
            return stream, row
        study = self._study[number]
        members = self._order[self._bounds[study] : self._bounds[study + 1]]
        others = members[members != number]
        for turn in range(len(others)):
            other = others[(mix(seed, 3) + turn) % len(others)]
            found = int(self._stream[other]), int(self._row[other])
            if found not in bad:
                return found
        return stream, row


def aligned(one: SampleEntry, other: SampleEntry) -> bool:
    """Whether two scans of a study have the same grid, as registered contrasts do: no more is stored of their place."""
    same = one.shape[1:] == other.shape[1:] and one.orientation == other.orientation
    return same and bool(np.allclose(one.spacing, other.spacing, rtol=_SPACING, atol=0))
