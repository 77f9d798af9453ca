"""`near_duplicates.csv`: the scans of a data set that nearly repeat another one, listed while it is built.

A line says that the scan in row `row` of `samples.npy` resembles the one in row `kept_row`, which itself resembles no
other one that is kept. Leaving out every `key` leaves one scan of each group.
"""

import csv
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.shards.duplicates import count_labels
from scanfoundry.datasets.shards.format import NEAR_DUPLICATES, NearDuplicateRecord, SampleEntry
from scanfoundry.datasets.shards.near_duplicates import Describable, find_near_duplicates
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.shards.thumbnail import SIZE

_UNKNOWN = "unknown"  # the modality of scans of which a build was not told any
_LINE = re.compile(r"([\w-]+),([\w-]+),(\d\.\d{3}),(yes|no),(\d{1,18}),(\d{1,18})", re.ASCII)
_IMAGE, _VOLUME, _FRAMES = range(3)
Thumbnails = Callable[[], Iterator[NDArray[np.int8]]]


@dataclass(frozen=True)
class NearDuplicate:
    """A line of the file: scan `key`, in the table's row `row`, and the scan that is kept of the two."""

    key: str
    kept_key: str
    correlation: float
    same_patient: bool
    row: int
    kept_row: int


_COLUMNS = [field.name for field in fields(NearDuplicate)]


# What of a scan decides on whether it may be a near-duplicate of another, and which of the two is kept.
_FACTS = np.dtype(
    [
        ("kind", "u1"),
        ("modality", "u2"),
        ("sides", "f8", (2, 3)),  # along D, H, W, in voxels and in mm; images and frames have H in the place of D
        ("known", "i8", (3,)),  # labels, facts, voxels: the more, the better
    ]
)


class NearDuplicateFinder:
    """Takes all scans of a data set in the order of its table, then lists the near-duplicates among them."""

    def __init__(self) -> None:
        self._modalities: dict[str, int] = {}
        self._facts: list[NDArray[np.void]] = []  # of each shard

    def add(self, entries: Iterable[SampleEntry]) -> None:
        """The scans of the next shard."""
        self._facts.append(np.fromiter((_facts_of(entry, self._modalities) for entry in entries), _FACTS))

    def find(self, walk: Callable[[], Iterable[SampleEntry]], thumbnails: Thumbnails) -> list[NearDuplicate]:
        """The lines of the file, by (row, kept_row).

        Args:
            walk: gives the same scans again; it is called where there is something to list.
            thumbnails: gives their descriptors in the same order, shard by shard; it is called up to three times.
        """
        facts = np.concatenate(self._facts)
        preference = np.empty(len(facts), np.int64)
        preference[np.lexsort((*-facts["known"].T[::-1],))] = np.arange(len(facts))
        found: list[tuple[int, int, float]] = []
        for kind in np.unique(facts["kind"]).tolist():
            chosen = facts["kind"] == kind
            group = Describable(
                thumbnails=_chosen(thumbnails, chosen, SIZE[kind == _IMAGE]),
                modalities=facts["modality"][chosen],
                unknown=self._modalities.get(_UNKNOWN, -1),
                sides=facts["sides"][chosen],
                preference=preference[chosen],
            )
            rows = np.flatnonzero(chosen).tolist()
            found += [(rows[pair.row], rows[pair.kept], pair.correlation) for pair in find_near_duplicates(group)]
        wanted = {row for pair in found for row in pair[:2]}
        named = {row: entry for row, entry in enumerate(walk() if wanted else []) if row in wanted}
        return [_line(named, *pair) for pair in sorted(found)]


def _facts_of(entry: SampleEntry, modalities: dict[str, int]) -> tuple[Any, ...]:
    """A row of `_FACTS`; modalities get their numbers as they come."""
    kind = _FRAMES if entry.frames else _IMAGE if entry.shape[1] == 1 else _VOLUME
    axes = (0, 1, 2) if kind == _VOLUME else (1, 1, 2)
    sides = [entry.shape[1 + axis] for axis in axes], [entry.shape[1 + axis] * entry.spacing[axis] for axis in axes]
    known = count_labels(entry), len(entry.facts), math.prod(entry.shape[1:])
    return kind, modalities.setdefault(entry.modality, len(modalities)), sides, known


def _line(named: dict[int, SampleEntry], row: int, kept: int, correlation: float) -> NearDuplicate:
    same = not set(named[row].all_patients()).isdisjoint(named[kept].all_patients())
    return NearDuplicate(named[row].key, named[kept].key, round(correlation, 3), same, row, kept)


def _chosen(thumbnails: Thumbnails, chosen: NDArray[np.bool_], size: int) -> NDArray[np.int8]:
    """The first `size` numbers of the descriptors of the chosen scans."""
    table = np.empty((int(chosen.sum()), size), np.int8)
    row = place = 0
    for shard in thumbnails():
        part = shard[chosen[row : row + len(shard)], :size]
        table[place : place + len(part)] = part
        row, place = row + len(shard), place + len(part)
    return table


def write_near_duplicates(
    out: Path, found: Sequence[NearDuplicate], file: str = NEAR_DUPLICATES
) -> NearDuplicateRecord:
    """Write the file into the folder `out`; returns what the manifest says of it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in found:
        key, kept_key, correlation, same, row, kept_row = astuple(line)
        writer.writerow([key, kept_key, f"{correlation:.3f}", "yes" if same else "no", row, kept_row])
    content = stream.getvalue().encode()
    write_bytes(out / file, content)
    scans, others = count_scans(found)
    return NearDuplicateRecord(file=file, scans=scans, others=others, sha256=hashlib.sha256(content).hexdigest())


def count_scans(found: Iterable[NearDuplicate]) -> tuple[int, int]:
    """How many scans the lines would leave out, and how many of these resemble one of another patient."""
    rows = {(line.row, line.same_patient) for line in found}
    return len({row for row, _ in rows}), sum(not same for _, same in rows)


def read_near_duplicates(data: DataSet) -> list[NearDuplicate] | None:
    """The lines of a data set's file; None where it was built before near-duplicates were looked for.

    Raises:
        UserError: the file cannot be read, or is not of this data set.
    """
    record = data.manifest.near_duplicates
    if record is None:
        return None
    content = data.store.small(record.file, record.sha256)
    head, *lines = content.decode("ascii", "replace").splitlines() or [""]
    cells = [_LINE.fullmatch(line) for line in lines]
    found = [
        NearDuplicate(cell[1], cell[2], float(cell[3]), cell[4] == "yes", int(cell[5]), int(cell[6]))
        for cell in cells
        if cell is not None
    ]
    rows = sum(shard.samples for shard in data.manifest.shards)
    within = all(max(line.row, line.kept_row) < rows and line.row != line.kept_row for line in found)
    if head != ",".join(_COLUMNS) or len(found) < len(lines) or not within:
        raise UserError(f"{data.store.shown(record.file)} is damaged; copy or build it again")
    return found
