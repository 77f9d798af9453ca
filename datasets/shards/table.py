"""`samples.npy`: one row per scan with what the sampling plan needs, so that it need not read every index."""

import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.lib import format as npy
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.shards.format import SampleEntry, ShardRecord

ROW = np.dtype(
    [
        ("shard", "<u4"),  # number in the manifest
        ("sample", "<u4"),  # number in the shard's index
        ("depth", "<u4"),  # slices or frames
        ("flat", "?"),  # an image, or frames that are images of their own
        ("modality", "<u2"),  # number in the manifest's modalities
        ("least", "<f8"),  # smallest `identity.fraction` of the patients under whom it was found
        ("patient", "S32"),  # keyed hash; the manifest's `also` lists those of duplicates
        ("study", "S32"),  # keyed hash, empty where it was not kept; builds from before it was have no such column
    ]
)
_BEFORE = np.dtype([(name, ROW[name]) for name in ROW.names or () if name != "study"])
_HEX = np.isin(np.arange(256), list(b"0123456789abcdef"))


def rows_of(shard: int, entries: Iterable[SampleEntry], modalities: list[str]) -> NDArray[np.void]:
    """The rows of one shard; `modalities` are the manifest's, in its order."""
    rows = [
        (
            shard,
            sample,
            entry.shape[1],
            entry.frames or entry.shape[1] == 1,
            modalities.index(entry.modality),
            min(fraction(patient) for patient in entry.all_patients()),
            entry.patient.encode(),
            entry.study.encode(),
        )
        for sample, entry in enumerate(entries)
    ]
    return np.array(rows, ROW)


def found_later(rows: NDArray[np.void], first: int, later: Mapping[int, Sequence[str]]) -> NDArray[np.void]:
    """The rows from number `first` on, with the patients under whom an append found their voxels again."""
    changed = rows.copy()
    for row, patients in later.items():
        if first <= row < first + len(rows):
            changed["least"][row - first] = min([changed["least"][row - first], *map(fraction, patients)])
    return changed


def differs(rows: NDArray[np.void], expected: NDArray[np.void]) -> bool:
    """Whether the rows of a data set are not `expected`, of which they may lack the newer columns."""
    names = list(rows.dtype.names or ())
    return repack_fields(expected[names]).tobytes() != rows.tobytes()


def to_bytes(table: NDArray[np.void]) -> bytes:
    """The table as an .npy file."""
    stream = io.BytesIO()
    np.save(stream, table, allow_pickle=False)
    return stream.getvalue()


def parse_table(content: bytes, name: str, shards: list[ShardRecord], modalities: int) -> NDArray[np.void]:
    """The table in the bytes of an .npy file; UserError names `name` where it does not belong to these shards."""
    table = _table_in(content)
    if table is None:
        raise UserError(f"{name} is damaged; copy or build it again")
    if len(table) != sum(shard.samples for shard in shards):
        raise UserError(f"{name} is damaged (it has other rows than the manifest); copy or build it again")
    sizes = np.array([shard.samples for shard in shards])
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(table)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if (
        (table["shard"] != numbers).any()
        or (table["sample"] != within).any()
        or (table["modality"] >= modalities).any()
    ):
        raise UserError(f"{name} is damaged (its rows are out of order); copy or build it again")
    # numpy relies on bools to be 0 or 1: others can make it write beyond an array.
    flags, patients = table["flat"].view(np.uint8), np.ascontiguousarray(table["patient"]).view(np.uint8)
    known = (table["least"] >= 0) & (table["least"] < 1)
    if (flags > 1).any() or not known.all() or not _HEX[patients].all() or not _studies(table):
        raise UserError(f"{name} is damaged (its rows hold what no scan has); copy or build it again")
    return table


def _studies(table: NDArray[np.void]) -> bool:
    """Whether its studies are hashes or empty."""
    if "study" not in (table.dtype.names or ()):
        return True
    studies = np.ascontiguousarray(table["study"]).view(np.uint8).reshape(len(table), -1)
    return bool((_HEX[studies].all(1) | (studies == 0).all(1)).all())


def _table_in(content: bytes) -> NDArray[np.void] | None:
    """The rows in the bytes of an .npy file; None where that is none, or holds anything else."""
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        shape, _, dtype = npy.read_array_header_1_0(stream)
    except Exception:  # numpy reads the head as python source, and raises whatever the damage makes of that
        return None
    rows = content[stream.tell() :]
    if version != (1, 0) or dtype not in (ROW, _BEFORE) or len(shape) != 1 or len(rows) != shape[0] * dtype.itemsize:
        return None
    return np.frombuffer(rows, dtype)
