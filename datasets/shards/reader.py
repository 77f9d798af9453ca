"""Opening a data set, and reading parts of its scans straight out of the tar."""

import hashlib
import os
import zlib
from collections import OrderedDict
from pathlib import Path

import blosc2
from numpy.typing import NDArray

from scanforge.configs.errors import UserError
from scanforge.datasets.shards.format import (
    MANIFEST,
    Manifest,
    SampleEntry,
    ShardIndex,
    ShardRecord,
    index_name,
    parse,
)

_OPEN_SCANS = 4  # kept open: consecutive crops are often of the same scan
Region = tuple[slice, slice, slice]  # of D, H, W


class BadSample(Exception):
    """A scan in a shard that cannot be read; the text names the shard and the reason."""


class DataSet:
    """An opened data set: its manifest is valid and every shard is there in its full size.

    Raises UserError (one line) for a folder that is none, another format version, missing or cut shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = f"{self.folder} is not a complete data set ({MANIFEST}: {error.strerror})"
            raise UserError(f"{reason}; make it by 'scanforge data build'") from error
        self.manifest = parse(Manifest, content, str(path))
        self.manifest_hash = hashlib.sha256(content).hexdigest()
        for shard in self.manifest.shards:
            self._check_size(shard)

    def _check_size(self, shard: ShardRecord) -> None:
        path = self.folder / shard.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"shard {path} cannot be opened: {error.strerror}; copy or build it again") from error
        if size != shard.bytes:
            raise UserError(f"shard {path} has {size} bytes instead of {shard.bytes}; copy or build it again")

    def index(self, shard: ShardRecord) -> ShardIndex:
        """The index of one shard, read from disk and checked against the manifest; UserError where it is damaged."""
        return read_index(self.folder, shard)


def read_index(folder: Path, shard: ShardRecord) -> ShardIndex:
    """See `DataSet.index`."""
    path = folder / index_name(shard.name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"index {path} cannot be read: {error.strerror}; copy or build it again") from error
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise UserError(f"index {path} is damaged (its sha256 is not the manifest's); copy or build it again")
    return parse(ShardIndex, content, str(path))


class ShardReader:
    """Partial reads of the scans of one shard. A scan's checksum is verified when it is first touched."""

    def __init__(self, folder: Path, shard: ShardRecord) -> None:
        self.path, self.shard = folder / shard.name, shard
        self.entries = read_index(folder, shard).samples
        self._verified = bytearray(len(self.entries))
        self._open: OrderedDict[int, blosc2.NDArray] = OrderedDict()

    def read(self, number: int, region: Region | None = None) -> NDArray:
        """Voxels (C, d, h, w) of `region` of the scan `number`, or of all of it, in its own dtype.

        Only the blocks that the region touches are decoded. BadSample where the bytes are damaged or gone.
        """
        try:
            # A memory map reaches beyond the end of a file that was cut since: the process would die of SIGBUS.
            if os.stat(self.path).st_size != self.shard.bytes:
                raise BadSample(f"shard {self.path}: its size has changed")
            array = self._array(number)
            return array[:] if region is None else array[(slice(None), *region)]
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise BadSample(f"shard {self.path}, scan {self.entries[number].key}: {reason}") from error

    def _array(self, number: int) -> blosc2.NDArray:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self.entries[number]
        if not self._verified[number]:
            self._verify(entry)
            self._verified[number] = 1
        array = blosc2.open(str(self.path), mode="r", offset=entry.offset, mmap_mode="r")
        if array.shape != entry.shape or array.dtype.name != entry.dtype:
            raise ValueError(f"holds {array.dtype.name} {array.shape}, its index says {entry.dtype} {entry.shape}")
        self._open[number] = array
        if len(self._open) > _OPEN_SCANS:
            self._open.popitem(last=False)
        return array

    def _verify(self, entry: SampleEntry) -> None:
        with open(self.path, "rb") as stream:
            stream.seek(entry.offset)
            payload = stream.read(entry.length)
        if len(payload) != entry.length or zlib.crc32(payload) != entry.crc32:
            raise ValueError("its checksum does not fit")
