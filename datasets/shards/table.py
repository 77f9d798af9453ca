"""`samples.npy`: one row per scan with what the sampling plan needs, so that it need not read every index."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

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
_ROWS = 1 << 15  # that are in memory at a time


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
    for _ in table_blocks(io.BytesIO(content), name, shards, modalities):
        pass  # each is checked
    dtype, _, begin = _header(io.BytesIO(content), name)
    return np.frombuffer(content, dtype, offset=begin)


def table_blocks(
    stream: BinaryIO, name: str, shards: list[ShardRecord], modalities: int, sha256: str | None = None
) -> Iterator[NDArray[np.void]]:
    """The rows of the table in an .npy file, some thousand at a time, so that no more are in memory.

    Args:
        stream: the file, at its beginning.
        name: of the file, for messages.
        shards: that it should be of.
        modalities: that the data set has.
        sha256: of the whole file. It is known at the end alone: what was made of the blocks is to be dropped where the
            last one is followed by an error.

    Raises:
        UserError: it is no table, or does not belong to these shards.
    """
    dtype, rows, begin = _header(stream, name)
    if rows != sum(shard.samples for shard in shards):
        raise UserError(f"{name} is damaged (it has other rows than the manifest); copy or build it again")
    ends = np.cumsum([shard.samples for shard in shards])
    stream.seek(0)
    digest = hashlib.sha256(stream.read(begin))
    for first in range(0, rows, _ROWS):
        content = stream.read(min(_ROWS, rows - first) * dtype.itemsize)
        if len(content) % dtype.itemsize or not content:
            raise UserError(f"{name} is damaged; copy or build it again")
        digest.update(content)
        block = np.frombuffer(content, dtype)
        _check_rows(block, first, ends, name, modalities)
        yield block
    if sha256 is not None and digest.hexdigest() != sha256:
        raise UserError(f"{name} is damaged (its sha256 is not the manifest's); copy or build it again")


def _check_rows(block: NDArray[np.void], first: int, ends: NDArray[np.int64], name: str, modalities: int) -> None:
    """UserError where rows from number `first` on are not those of shards that end with rows `ends`."""
    numbers = np.arange(first, first + len(block))
    shards = np.searchsorted(ends, numbers, "right")
    within = numbers - np.concatenate([[0], ends])[shards]
    if (block["shard"] != shards).any() or (block["sample"] != within).any() or (block["modality"] >= modalities).any():
        raise UserError(f"{name} is damaged (its rows are out of order); copy or build it again")
    # numpy relies on bools to be 0 or 1: others can make it write beyond an array.
    known = (block["least"] >= 0) & (block["least"] < 1)
    if (
        (block["flat"].view(np.uint8) > 1).any()
        or not known.all()
        or not _hashes(block["patient"])
        or not _studies(block)
    ):
        raise UserError(f"{name} is damaged (its rows hold what no scan has); copy or build it again")


def _hashes(texts: NDArray[np.bytes_]) -> bool:
    """Whether all are hashes."""
    return not np.ascontiguousarray(texts).tobytes().translate(None, b"0123456789abcdef")


def _studies(block: NDArray[np.void]) -> bool:
    """Whether its studies are hashes or empty."""
    if "study" not in (block.dtype.names or ()):
        return True
    raw = np.ascontiguousarray(block["study"])
    empty = (raw.view(np.uint64).reshape(len(block), -1) == 0).all(1)
    return _hashes(raw[~empty] if empty.any() else raw)


def _header(stream: BinaryIO, name: str) -> tuple[np.dtype, int, int]:
    """Of the table in an .npy file: its dtype, the number of rows, and where they begin; UserError where it is none."""
    try:
        version = npy.read_magic(stream)
        shape, _, dtype = npy.read_array_header_1_0(stream)
    except Exception:  # numpy reads the head as python source, and raises whatever the damage makes of that
        raise UserError(f"{name} is damaged; copy or build it again") from None
    begin = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    if version != (1, 0) or dtype not in (ROW, _BEFORE) or len(shape) != 1 or size - begin != shape[0] * dtype.itemsize:
        raise UserError(f"{name} is damaged; copy or build it again")
    return dtype, shape[0], begin
