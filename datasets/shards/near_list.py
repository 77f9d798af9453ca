"""`near_duplicates.csv`: the scans of a data set that nearly repeat another one, listed while it is built.

A line says that the scan in row `row` of `samples.npy` resembles the one in row `kept_row`, which itself resembles no
other one that is kept. Leaving out every `key` leaves one scan of each group.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

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


@dataclass(frozen=True)
class _Facts:
    """What of a scan decides on whether it may be a near-duplicate of another, and which of the two is kept."""

    key: str
    kind: int
    modality: str
    voxels: tuple[int, ...]  # (H, W) of images and of frames, (D, H, W) of volumes
    lengths: tuple[float, ...]  # mm
    known: tuple[int, int, int]  # labels, facts and voxels: the more, the better
    patients: tuple[str, ...]

    @classmethod
    def of(cls, entry: SampleEntry) -> "_Facts":
        kind = _FRAMES if entry.frames else _IMAGE if entry.shape[1] == 1 else _VOLUME
        voxels = entry.shape[1 if kind == _VOLUME else 2 :]
        lengths = tuple(length * mm for length, mm in zip(voxels, entry.spacing[-len(voxels) :], strict=True))
        known = (count_labels(entry), len(entry.facts), int(np.prod(entry.shape[1:])))
        return cls(entry.key, kind, entry.modality, voxels, lengths, known, tuple(entry.all_patients()))


def list_near_duplicates(entries: Iterable[SampleEntry], thumbnails: Thumbnails) -> list[NearDuplicate]:
    """The near-duplicates among all scans of a data set.

    Args:
        entries: of all scans, in the order of the table.
        thumbnails: gives their descriptors in the same order, shard by shard; it is called up to three times.

    Returns:
        Lines of the file, by (row, kept_row).
    """
    scans = [_Facts.of(entry) for entry in entries]
    kinds = np.array([scan.kind for scan in scans])
    best = sorted(range(len(scans)), key=lambda row: (*(-count for count in scans[row].known), row))
    preference = np.empty(len(scans), np.int64)
    preference[best] = np.arange(len(scans))
    modalities = sorted({scan.modality for scan in scans})
    found: list[NearDuplicate] = []
    for kind in np.unique(kinds).tolist():
        rows = np.flatnonzero(kinds == kind)
        some = [scans[row] for row in rows]
        group = Describable(
            thumbnails=_chosen(thumbnails, kinds == kind, SIZE[kind == _IMAGE]),
            modalities=np.array([modalities.index(scan.modality) for scan in some]),
            unknown=modalities.index(_UNKNOWN) if _UNKNOWN in modalities else -1,
            sides=np.array([(scan.voxels, scan.lengths) for scan in some], np.float64),
            preference=preference[rows],
        )
        for pair in find_near_duplicates(group):
            row, kept = int(rows[pair.row]), int(rows[pair.kept])
            one, other = scans[row], scans[kept]
            same = not set(one.patients).isdisjoint(other.patients)
            found.append(NearDuplicate(one.key, other.key, round(pair.correlation, 3), same, row, kept))
    return sorted(found, key=lambda line: (line.row, line.kept_row))


def _chosen(thumbnails: Thumbnails, chosen: NDArray[np.bool_], size: int) -> NDArray[np.int8]:
    """The first `size` numbers of the descriptors of the chosen scans."""
    table = np.empty((int(chosen.sum()), size), np.int8)
    row = place = 0
    for shard in thumbnails():
        part = shard[chosen[row : row + len(shard)], :size]
        table[place : place + len(part)] = part
        row, place = row + len(shard), place + len(part)
    return table


def write_near_duplicates(out: Path, found: Sequence[NearDuplicate]) -> NearDuplicateRecord:
    """Write the file into the folder `out`; returns what the manifest says of it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in found:
        key, kept_key, correlation, same, row, kept_row = astuple(line)
        writer.writerow([key, kept_key, f"{correlation:.3f}", "yes" if same else "no", row, kept_row])
    content = stream.getvalue().encode()
    write_bytes(out / NEAR_DUPLICATES, content)
    return NearDuplicateRecord(
        scans=len({line.row for line in found}),
        others=len({line.row for line in found if not line.same_patient}),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def read_near_duplicates(data: DataSet) -> list[NearDuplicate] | None:
    """The lines of a data set's file; None where it was built before near-duplicates were looked for.

    Raises:
        UserError: the file cannot be read, or is not of this data set.
    """
    record = data.manifest.near_duplicates
    if record is None:
        return None
    content = data.store.small(NEAR_DUPLICATES, record.sha256)
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
        raise UserError(f"{data.store.shown(NEAR_DUPLICATES)} is damaged; copy or build it again")
    return found
