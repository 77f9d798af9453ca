"""A data set that scans are appended to: what it holds already, found in its indices without parsing them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.sources import PlannedSource, shown
from scanfoundry.datasets.shards.duplicates import SampleId
from scanfoundry.datasets.shards.format import ParentRecord, SampleEntry, ShardIndex, ShardRecord, index_name, parse
from scanfoundry.datasets.shards.packed_index import index_text
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.shards.source_table import read_source_table
from scanfoundry.datasets.shards.table import ROW

_NUMBER = re.compile(r"shard-([0-9]+)\.tar")
# A text of somebody cannot look so: JSON writes its quotation marks with a backslash.
_KEY, _CONTENT = re.compile(rb'"key":"([A-Za-z0-9_-]+)"'), re.compile(rb'"content":"([0-9a-f]{32})"')


class Twin(NamedTuple):
    """A new scan, and the row and the entry of the stored one that it equals."""

    entry: SampleEntry
    row: int
    stored: SampleEntry


class Parent:
    """A data set in the folder `out`, before scans are appended to it.

    Raises:
        UserError: it is none, damaged, or of a format that cannot be continued.
    """

    def __init__(self, out: Path) -> None:
        self.data = DataSet(out)
        self.manifest = self.data.manifest
        self.generation = 1 if self.manifest.parent is None else int(self.manifest.parent.file[9:15]) + 2

    @property
    def record(self) -> ParentRecord:
        """What the next manifest says of this one, which is kept in a file of its own."""
        file = f"manifest-{self.generation - 1:06d}.json"
        return ParentRecord(
            file=file, sha256=self.data.manifest_hash, scans=self.manifest.scans, shards=len(self.manifest.shards)
        )

    @property
    def next_shard(self) -> int:
        """The number of the first new shard."""
        found = (_NUMBER.fullmatch(shard.name) for shard in self.manifest.shards)
        return 1 + max(int(each[1]) for each in found if each is not None)

    @cached_property
    def table(self) -> NDArray[np.void]:
        """Its rows."""
        table = self.data.samples()
        if table.dtype != ROW:
            raise UserError(
                f"{self.data.folder} was built before studies were kept: build it into a new folder, with the new scans"
            )
        return table

    def new(self, sources: Sequence[PlannedSource]) -> list[PlannedSource]:
        """The sources that it was not built from.

        Raises:
            UserError: a source has changed since, or has the name of another one.
        """
        table = read_source_table(self.data)
        if table is None:
            return list(sources)
        known = {order: int(size) for order, size in table.tolist()}
        for each in sources:
            if known.get(each.order.encode(), each.source.size) != each.source.size:
                raise UserError(
                    f"'{shown(each.source.relative)}' has another size than the scan of that name in "
                    f"{self.data.folder}: it was changed, or is another scan; give it another name, or build anew"
                )
        return [each for each in sources if each.order.encode() not in known]

    def twins(self, scans: Iterable[tuple[SampleId, SampleEntry]]) -> dict[SampleId, Twin]:
        """The new scans whose voxels it holds already.

        Raises:
            UserError: a new scan has the key of a stored one, and other voxels.
        """
        places: dict[bytes, list[tuple[SampleId, SampleEntry]]] = {}
        keys: dict[bytes, bytes] = {}
        for place, entry in scans:
            places.setdefault(entry.content.encode(), []).append((place, entry))
            keys[entry.key.encode()] = entry.content.encode()
        found: dict[SampleId, Twin] = {}
        row = 0
        for shard in self.manifest.shards:
            content = self.data.store.small(index_name(shard.name), shard.index_sha256)
            content = index_text(content, index_name(shard.name))
            for number, (key, voxels) in enumerate(self._stored(content, shard)):
                if keys.get(key, voxels) != voxels:
                    raise UserError(
                        f"a scan in {self.data.folder} has the name of a new one, and other voxels: give the new scans "
                        "other names, or build all of them anew from their common parent"
                    )
                if voxels in places:
                    stored = parse(ShardIndex, content, shard.name).samples[number]
                    found |= {place: Twin(entry, row + number, stored) for place, entry in places[voxels]}
            row += shard.samples
        return found

    def _stored(self, content: bytes, shard: ShardRecord) -> Iterator[tuple[bytes, bytes]]:
        """(key, hash of the voxels) of the scans of a shard."""
        keys, voxels = _KEY.findall(content), _CONTENT.findall(content)
        if len(keys) == len(voxels) == shard.samples:
            return zip(keys, voxels, strict=True)
        samples = parse(ShardIndex, content, shard.name).samples
        return ((entry.key.encode(), entry.content.encode()) for entry in samples)
