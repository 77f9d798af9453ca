"""Opening a data set, and reading parts of its scans straight out of the tar."""

import hashlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import BinaryIO

import blosc2
import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels import Box, Labels
from scanfoundry.datasets.shards.blocks import WHOLE, BlockTable, DamagedBlock, parse_blocks, read_region
from scanfoundry.datasets.shards.encode import restore, single_block, summed
from scanfoundry.datasets.shards.format import (
    MANIFEST,
    LabelRecord,
    Manifest,
    Member,
    SampleEntry,
    ShardIndex,
    ShardRecord,
    index_name,
    parse,
)
from scanfoundry.datasets.shards.index import EntryCache, ShardEntries, parse_index
from scanfoundry.datasets.shards.jpeg import decode_jpeg
from scanfoundry.datasets.shards.table import parse_table, table_blocks
from scanfoundry.datasets.storage.store import CacheConfig, FolderStore, Store, Unavailable

_OPEN_SCANS = 4  # kept open: consecutive crops are often of the same scan
_ENTRIES = 256  # kept parsed by a reader that shares them with no other
Region = tuple[slice, slice, slice]  # of D, H, W


class BadSample(Exception):
    """A scan in a shard that cannot be read. The text names the shard and the reason."""


class BadCrop(BadSample):
    """A crop of a large scan that touches damage. Crops elsewhere in the scan can be read."""


class DataSet:
    """An opened data set. Its manifest is valid and, on local disk, every shard is there in its full size.

    Args:
        location: a folder, or the URL of one that fsspec reads (http, s3, gs, hf, ...). Shards behind a URL are fetched
            when they are used.
        cache: where fetched shards are kept, and how many.

    Raises:
        UserError: the location is no data set or one of another format version, or a shard is missing or cut.
    """

    def __init__(self, location: str | Path, cache: CacheConfig | None = None) -> None:
        self.store = Store.of(location, cache or CacheConfig())
        name = self.store.shown(MANIFEST)
        try:
            content = self.store.small(MANIFEST)
        except Unavailable as error:
            raise UserError(
                f"{self.store.shown('')} is not a complete data set ({error}); make it by 'scanfoundry data build'"
            ) from error
        self.manifest = parse(Manifest, content, name)
        self.manifest_hash = hashlib.sha256(content).hexdigest()
        if isinstance(self.store, FolderStore):
            for shard in self.manifest.shards:
                _check_size(self.store.folder, shard)

    @property
    def modalities(self) -> list[str]:
        """The modalities of its scans, in the order in which `samples` numbers them."""
        return sorted(self.manifest.modalities)

    @property
    def folder(self) -> Path:
        """The folder on local disk.

        Raises:
            UserError: the data set lies behind a URL.
        """
        if isinstance(self.store, FolderStore):
            return self.store.folder
        raise UserError(f"{self.store.shown('')} is not on local disk: copy it there first")

    def earlier_manifests(self) -> dict[str, str]:
        """The files of the manifests that it had before scans were appended, by their sha256.

        Raises:
            UserError: one of them cannot be read or is damaged.
        """
        found: dict[str, str] = {}
        parent = self.manifest.parent
        while parent is not None:
            found[parent.sha256] = parent.file
            content = self.store.small(parent.file, parent.sha256)
            parent = parse(Manifest, content, self.store.shown(parent.file)).parent
        return found

    def as_of(self, sha256: str) -> "DataSet":
        """The data set with the manifest of that sum, its own or one from before scans were appended.

        Raises:
            UserError: it never had such a manifest, or one of them cannot be read or is damaged.
        """
        if sha256 == self.manifest_hash:
            return self
        file, shown = self.earlier_manifests().get(sha256, ""), self.store.shown("")
        if not file:
            raise UserError(f"{shown} never had the manifest with the sha256 {sha256}; restore that data set")
        found = copy(self)
        found.manifest = parse(Manifest, self.store.small(file, sha256), self.store.shown(file))
        found.manifest_hash = sha256
        if found.manifest.shards != self.manifest.shards[: len(found.manifest.shards)]:
            raise UserError(f"{shown}: its first shards are not those of {file}; copy or build it again")
        return found

    def samples(self) -> NDArray[np.void]:
        """The table of all scans, one row for each.

        Returns:
            A structured array with the fields of `table.ROW`; older builds lack `study`.

        Raises:
            UserError: the table cannot be read or is damaged.
        """
        content = self.store.small(self.manifest.samples, self.manifest.samples_sha256)
        name = self.store.shown(self.manifest.samples)
        return parse_table(content, name, self.manifest.shards, len(self.manifest.modalities))

    def sample_blocks(self) -> Iterator[NDArray[np.void]]:
        """The rows of `samples`, some thousand at a time.

        Raises:
            UserError: as `samples`; of damage perhaps after the last block alone.
        """
        manifest, name = self.manifest, self.store.shown(self.manifest.samples)
        with self.store.stream(manifest.samples, manifest.samples_sha256) as stream:
            yield from table_blocks(stream, name, manifest.shards, len(manifest.modalities), manifest.samples_sha256)

    def index(self, shard: ShardRecord) -> ShardIndex:
        """The index of one shard, checked against the manifest.

        Raises:
            UserError: the index is damaged.
        """
        return read_index(self.store, shard)


def _check_size(folder: Path, shard: ShardRecord) -> None:
    path = folder / shard.name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"shard {path} cannot be opened: {error.strerror}; copy or build it again") from error
    if size != shard.bytes:
        raise UserError(f"shard {path} has {size} bytes instead of {shard.bytes}; copy or build it again")


def read_index(where: Path | Store, shard: ShardRecord) -> ShardIndex:
    """The index of one shard.

    Args:
        where: the folder or store that the shard lies in.
        shard: its record in the manifest.

    Raises:
        UserError: the index cannot be read, or is not the one that the manifest was written for.
    """
    store = where if isinstance(where, Store) else FolderStore(where)
    name = index_name(shard.name)
    return parse_index(store.small(name, shard.index_sha256), shard, store.shown(name))


class ShardReader:
    """Reads parts of the scans of one shard.

    Of a large scan, the blocks that a crop touches are read, and the checksum of each is verified. Where it has no
    table of blocks, as in older builds, the scan is verified as a whole when it is first touched, and mapped. A kept
    JPEG is read and decoded as a whole, and its pixels are compared by their checksum with those of the build.

    Args:
        where: the folder or store that the shard lies in.
        shard: its record in the manifest.
        cache: for parsed entries; None: one of its own.

    Raises:
        UserError: the index of the shard cannot be read or is damaged.
    """

    def __init__(self, where: Path | Store, shard: ShardRecord, cache: EntryCache | None = None) -> None:
        self._store = where if isinstance(where, Store) else FolderStore(where)
        self.shard, self.name = shard, self._store.shown(shard.name)
        self._cache = EntryCache(_ENTRIES) if cache is None else cache
        self.entries = ShardEntries(self._store, shard, self._cache)
        self._verified = bytearray(len(self.entries))
        self._open: OrderedDict[int, blosc2.NDArray] = OrderedDict()
        self._tables: OrderedDict[int, BlockTable] = OrderedDict()
        self._stream: BinaryIO | None = None  # of the one file that everything is read from, whatever its name becomes
        self._map: memoryview | None = None  # of the same file
        self._state: tuple[int, ...] = ()  # in which it was when scans were verified

    def read(self, number: int, region: Region | None = None) -> NDArray:
        """Voxels of a scan. Only the blocks that the region touches are decoded.

        Args:
            number: of the scan in the shard.
            region: slices along D, H, W; None: the whole scan.

        Returns:
            (C, d, h, w) in the scan's own dtype.

        Raises:
            BadSample: the bytes are damaged or gone.
        """
        entry = self.entries[number]
        with self._as_bad_sample(entry):
            if entry.jpeg is not None:
                image = self._image(entry, number)
                return image.copy() if region is None else image[(slice(None), *region)].copy()
            return restore(self._stored(number, region), entry.dtype, entry.levels)

    def read_into(self, number: int, region: Region, out: NDArray) -> None:
        """Read voxels of a region into an array, the fast way for crops.

        Args:
            number: of the scan in the shard.
            region: slices along D, H, W.
            out: (C, d, h, w) of any dtype; voxels are cast to it.

        Raises:
            BadSample: the bytes are damaged or gone.
        """
        entry = self.entries[number]
        with self._as_bad_sample(entry):
            plain = entry.levels is None and entry.stored == entry.dtype and not entry.rows
            plain = plain and out.dtype == entry.dtype and out.flags.c_contiguous
            if entry.jpeg is not None:
                np.copyto(out, self._image(entry, number)[(slice(None), *region)], casting="unsafe")
            elif plain and entry.blocks is not None:
                self._read_blocks(entry, number, region, out)
            elif plain and entry.length > WHOLE:
                start, stop = zip(*((part.start, part.stop) for part in region), strict=True)
                self._array(number).get_slice_numpy(out, ((0, *start), (entry.shape[0], *stop)))
            elif plain and out.shape == entry.shape:
                stored = _frame_of(self._payload(entry), entry.shape, entry.stored, False, out)
                if stored is not out:
                    np.copyto(out, stored[:])
            else:
                np.copyto(out, restore(self._stored(number, region), entry.dtype, entry.levels), casting="unsafe")

    def read_mask(self, number: int, region: Region | None = None) -> NDArray | None:
        """The mask of a scan.

        Args:
            number: of the scan in the shard.
            region: slices along D, H, W; None: the whole mask.

        Returns:
            (d, h, w) unsigned integers; None where the scan has no mask.

        Raises:
            BadSample: the bytes are damaged or gone.
        """
        entry = self.entries[number]
        if entry.mask is None:
            return None
        with self._as_bad_sample(entry):
            payload = self._payload(entry.mask)
            shape = (1, *entry.shape[1:])
            array = _frame_of(payload, shape, entry.mask.stored, entry.mask.rows)
            numbers = array[:] if region is None else array[(slice(None), *region)]
            return restore(numbers, entry.mask.dtype, None)[0]

    def labels(self, number: int) -> Labels:
        """The labels of the scan `number`, with its whole mask. Raises BadSample where the mask is damaged."""
        record = self.entries[number].labels or LabelRecord()
        boxes = None if record.boxes is None else tuple(Box(box.low, box.high, box.label) for box in record.boxes)
        mask = self.entries[number].mask
        greys = mask.greys if mask is not None else ""
        return Labels(self.read_mask(number), record.names, boxes, record.classes, record.targets, greys=greys)

    @contextmanager
    def _as_bad_sample(self, entry: SampleEntry) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a damaged frame can take its decoder anywhere
            if isinstance(error, UserError) and not isinstance(error, Unavailable):
                raise
            reason = " ".join(str(error).split())
            kind = BadCrop if isinstance(error, DamagedBlock) else BadSample
            raise kind(f"shard {self.name}, scan {entry.key}: {reason}") from error

    def _image(self, entry: SampleEntry, number: int) -> NDArray[np.uint8]:
        """The voxels of a kept JPEG (C, 1, H, W), which are not to be written to."""
        place = self.entries.place(number)
        pixels = self._cache.image_of(place)
        if pixels is None:
            pixels = decode_jpeg(self._payload(entry), entry.shape)
            if crc32(pixels) != entry.jpeg:
                raise ValueError("its JPEG decodes to other pixels than at the build (another version of imagecodecs?)")
            self._cache.image = place, pixels
        return pixels.transpose(2, 0, 1)[:, None]

    def _stored(self, number: int, region: Region | None) -> NDArray:
        entry = self.entries[number]
        if entry.length <= WHOLE or entry.rows:
            array = _frame_of(self._payload(entry), entry.shape, entry.stored, entry.rows)
        elif entry.blocks is not None and region is not None:
            sizes = [part.stop - part.start for part in region]
            numbers = np.empty((entry.shape[0], *sizes), entry.stored)
            self._read_blocks(entry, number, region, numbers)
            return numbers
        else:
            array = self._array(number)
        return array[:] if region is None else array[(slice(None), *region)]

    def _read_blocks(self, entry: SampleEntry, number: int, region: Region, out: NDArray) -> None:
        """Read a region of a scan that has a table of blocks into an array of the dtype of its numbers."""
        assert entry.blocks is not None
        table = self._tables.get(number)
        if table is None:
            content = self._payload(entry.blocks)
            table = parse_blocks(content, entry.shape, entry.stored, entry.length)
            self._tables[number] = table
            if len(self._tables) > _OPEN_SCANS:
                self._tables.popitem(last=False)
        whole = slice(0, entry.shape[0]), *region
        read_region(table, entry.shape, whole, partial(self._bytes, entry.offset), out)

    def _bytes(self, offset: int, begin: int, length: int) -> bytes:
        content = os.pread(self._descriptor(), length, offset + begin)
        if len(content) != length:
            raise ValueError("the shard's size has changed")
        return content

    def _payload(self, member: Member) -> bytes:
        """The bytes of a member, verified. Read rather than mapped: a file that was cut is an error, not a SIGBUS."""
        if member.offset + member.length > self.shard.bytes:
            raise ValueError("its index says that it lies beyond the shard's end")
        payload = os.pread(self._descriptor(), member.length, member.offset)
        if len(payload) != member.length or crc32(payload) != member.crc32:
            raise ValueError("its checksum does not fit")
        return payload

    def _descriptor(self) -> int:
        if self._stream is None:
            path = self._store.local(self.shard.name, self.shard.sha256, self.shard.bytes)
            self._stream = open(path, "rb", buffering=0)  # noqa: SIM115 (until `close`)
        return self._stream.fileno()

    def close(self) -> None:
        """Close the shard's files. A file in a cache may then be deleted."""
        self._open.clear()
        self._tables.clear()
        self.entries.close()
        if self._stream is not None:
            self._map = None
            self._stream.close()
            self._stream = None
            self._store.release(self.shard.name)

    def _array(self, number: int) -> blosc2.NDArray:
        """A large scan, opened in the memory map of the file that its checksum was taken of."""
        status = os.fstat(self._descriptor())
        # A memory map reaches beyond the end of a file that was cut since: the process would die of SIGBUS.
        if status.st_size != self.shard.bytes:
            raise ValueError("the shard's size has changed")
        state = (status.st_ino, status.st_dev, status.st_mtime_ns, status.st_ctime_ns)
        if state != self._state:  # another file, or one that was written to: what was verified says nothing of it
            self._open.clear()
            self._verified = bytearray(len(self.entries))
            self._state = state
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self.entries[number]
        if not self._verified[number]:
            self._payload(entry)
            self._verified[number] = 1
        if self._map is None:
            self._map = memoryview(mmap.mmap(self._descriptor(), self.shard.bytes, access=mmap.ACCESS_READ))
        array = blosc2.ndarray_from_cframe(self._map[entry.offset : entry.offset + entry.length])
        _expect(array, entry.shape, entry.stored)
        self._open[number] = array
        if len(self._open) > _OPEN_SCANS:
            self._open.popitem(last=False)
        return array


def _frame_of(
    payload: bytes, shape: tuple[int, ...], stored: str, rows: bool, out: NDArray | None = None
) -> NDArray | blosc2.NDArray:
    """The numbers in a member's payload, decoded (into `out`, where it is given) where it is one block, else opened."""
    array = single_block(payload, shape, stored, out)
    if array is None:
        array = blosc2.ndarray_from_cframe(payload)
        _expect(array, shape, stored)
    return summed(array[:]) if rows else array


def _expect(array: blosc2.NDArray, shape: tuple[int, ...], stored: str) -> None:
    if array.shape != shape or array.dtype.name != stored:
        raise ValueError(f"holds {array.dtype.name} {array.shape}, its index says {stored} {shape}")
