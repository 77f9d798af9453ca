"""The index of a shard as readers keep it: each entry is parsed when it is asked for.

To parse a whole index takes longer than to read most of its scans, and a worker visits a part of them. What is kept
of a long index is where each entry lies in its file, and a checksum of it.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import BinaryIO, overload

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards.format import SampleEntry, ShardIndex, ShardRecord, index_name, parse
from scanfoundry.datasets.shards.packed_index import index_text, is_packed, part_of_text, unpack_index
from scanfoundry.datasets.storage.store import FolderStore, Store, Unavailable

IN_MEMORY = 1 << 16  # bytes of an index that is kept as it is
ENTRY_TEXT = 700  # bytes of an entry in the file, about
PARSED = 3000  # bytes of a parsed entry in memory, about
# An entry begins with its offset. Within a text both quotes would be escaped, so this is found between entries alone.
_NEXT = re.compile(rb'\},(?=\{"offset":)')
_HEAD, _TAIL = re.compile(rb'\{"version":\d+,"samples":\[(?=\{"offset":)'), b"]}"


class EntryCache:
    """The entries that were parsed last, of all the indices that share it, and the image that was decoded last.

    Args:
        most: entries that are kept.

    Attributes:
        entries: by a number that `register` begins.
        image: its number, and its pixels (H, W, C): the next crop is often of the same image.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.entries: OrderedDict[int, SampleEntry] = OrderedDict()
        self.image: tuple[int, NDArray[np.uint8]] | None = None
        self._indices = 0

    def register(self) -> int:
        """The first of the numbers that the entries of an index have here."""
        self._indices += 1
        return self._indices << 32

    def put(self, place: int, entry: SampleEntry) -> None:
        """Keep an entry, in place of the one that was parsed longest ago."""
        self.entries[place] = entry
        if len(self.entries) > self._most:
            self.entries.popitem(last=False)

    def image_of(self, place: int) -> NDArray[np.uint8] | None:
        """The pixels of an image, where it was decoded last."""
        return self.image[1] if self.image is not None and self.image[0] == place else None


class ShardEntries(Sequence[SampleEntry]):
    """The entries of one shard.

    Args:
        store: that the shard lies in.
        shard: its record in the manifest.
        cache: for parsed entries.

    Raises:
        Unavailable: the index cannot be read, or is not the one that the manifest was written for.
        UserError: it is damaged. An entry that is damaged raises it when it is asked for.
    """

    def __init__(self, store: Store, shard: ShardRecord, cache: EntryCache) -> None:
        self._store, self._shard, self._cache = store, shard, cache
        self._file, self._name = index_name(shard.name), store.shown(index_name(shard.name))
        self._first = cache.register()
        self._known = cache.entries  # looked up some times for each crop
        content = text = store.small(self._file, shard.index_sha256)
        self._content: bytes | None = content
        self._stream: BinaryIO | None = None
        self._whole: list[SampleEntry] | None = None
        self._places: NDArray[np.int64] | None = None  # of the members of a compressed index
        if is_packed(content):
            text, self._places = unpack_index(content, self._name)
        self._bounds = _bounds_of(text, shard.samples)
        if not len(self._bounds):  # of another writer, or damaged before its sum was taken
            self._whole = parse_index(content, shard, self._name).samples
            return
        _check_version(text, self._name)
        if len(content) > IN_MEMORY and isinstance(store, FolderStore):
            self._content = None
        if self._content is None or self._places is not None:
            texts = (text[begin:end] for begin, end in self._bounds.tolist())
            self._sums = np.fromiter(map(crc32, texts), np.uint32, shard.samples)

    def __len__(self) -> int:
        return self._shard.samples

    def place(self, number: int) -> int:
        """The number that an entry has in the cache."""
        return self._first + number

    @overload
    def __getitem__(self, number: int) -> SampleEntry: ...

    @overload
    def __getitem__(self, number: slice) -> list[SampleEntry]: ...

    def __getitem__(self, number: int | slice) -> SampleEntry | list[SampleEntry]:
        if isinstance(number, int) and (known := self._known.get(self._first + number)) is not None:
            return known
        if self._whole is not None:
            return self._whole[number]
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]  # IndexError, and negative ones count from the end
        entry = self._known.get(self._first + number)
        if entry is None:
            entry = parse(SampleEntry, self._text(number), self._name)
            self._cache.put(self._first + number, entry)
        return entry

    def __iter__(self) -> Iterator[SampleEntry]:
        if self._whole is not None:
            return iter(self._whole)
        content = self._content or self._store.small(self._file, self._shard.index_sha256)
        return iter(parse_index(content, self._shard, self._name).samples)  # all at once is faster, and leaves no file

    def _text(self, number: int) -> bytes:
        begin, end = self._bounds[number].tolist()
        if self._places is None and self._content is not None:
            return self._content[begin:end]
        try:
            places = self._places
            text = self._fetch(begin, end) if places is None else part_of_text(begin, end, places, self._fetch)
        except OSError as error:
            raise Unavailable(f"{self._name} cannot be read: {error.strerror}; copy or build it again") from error
        except ValueError:  # compressed, and no longer what it was
            text = b""
        if crc32(text) != self._sums[number]:
            raise Unavailable(f"{self._name} has changed since it was opened; copy or build it again")
        return text

    def _fetch(self, begin: int, end: int) -> bytes:
        """Bytes of the index as it is stored."""
        if self._content is not None:
            return self._content[begin:end]
        assert isinstance(self._store, FolderStore), "a long index of another store is kept in memory"
        if self._stream is None:
            self._stream = open(self._store.folder / self._file, "rb", buffering=0)  # noqa: SIM115 (until `close`)
        return os.pread(self._stream.fileno(), end - begin, begin)

    def close(self) -> None:
        """Close the file; it is opened again where an entry is asked for."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def parse_index(content: bytes, shard: ShardRecord, name: str) -> ShardIndex:
    """The bytes of a whole index; UserError names `name` where they are damaged, or hold another number of scans."""
    index = parse(ShardIndex, index_text(content, name), name)
    if len(index.samples) != shard.samples:
        raise UserError(f"{name} holds {len(index.samples)} scans instead of {shard.samples}; copy or build it again")
    return index


def _check_version(content: bytes, name: str) -> None:
    """UserError where the index is of a format version that is not read."""
    parse(ShardIndex, content[: content.index(b"[") + 1] + b"]}", name)


def _bounds_of(content: bytes, samples: int) -> np.ndarray:
    """(samples, 2) where the text of each entry begins and ends; empty where it is not as `to_json` writes it."""
    head = _HEAD.match(content)
    if head is None or not content.endswith(_TAIL):
        return np.empty((0, 2), np.int64)
    begins = [head.end()]
    ends = []
    for found in _NEXT.finditer(content):
        ends.append(found.start() + 1)
        begins.append(found.end())
    ends.append(len(content) - len(_TAIL))
    if len(begins) != samples:
        return np.empty((0, 2), np.int64)
    return np.array([begins, ends], np.uint32).T.copy()
