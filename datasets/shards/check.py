"""`scanfoundry data check`: whether every byte of a data set is what was built, and what the data set holds."""

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from os.path import samestat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of
from scanfoundry.datasets.shards.blocks import block_table
from scanfoundry.datasets.shards.contact_sheet import draw_contact_sheet
from scanfoundry.datasets.shards.format import (
    INDEX_KEY,
    MANIFEST_WITH_JPEG,
    VERSION,
    Manifest,
    Member,
    NearDuplicateRecord,
    SampleEntry,
    ShardRecord,
    index_name,
    parse,
    to_json,
)
from scanfoundry.datasets.shards.near_list import count_scans, read_near_duplicates
from scanfoundry.datasets.shards.packs import check_packs
from scanfoundry.datasets.shards.reader import DataSet, ShardReader, read_index
from scanfoundry.datasets.shards.source_table import read_source_table
from scanfoundry.datasets.shards.summary import ModalityReport, Summary
from scanfoundry.datasets.shards.table import differs, found_later, rows_of
from scanfoundry.datasets.shards.writer import content_hash


@dataclass(frozen=True)
class CheckReport:
    """What a whole and undamaged data set holds."""

    folder: Path
    scans: int
    patients: int
    shards: int
    bytes: int
    modalities: dict[str, ModalityReport]
    duplicates: int  # scans whose voxels an earlier one has; a build leaves none
    near_duplicates: NearDuplicateRecord | None  # None: built before they were looked for
    warnings: dict[str, int]
    labels: dict[str, int]  # scans with masks, boxes, and each class or regression target
    contact_sheet: Path | None


def check(folder: Path, contact_sheet: Path | None = None) -> CheckReport:
    """Verify every byte of a data set against its manifest.

    Args:
        folder: the data set, on local disk.
        contact_sheet: where to draw a picture (PNG) of some of its scans; None: nowhere.

    Returns:
        What the data set holds.

    Raises:
        UserError: names the shard that is missing or cut, whose sha256 or crc32 is wrong, whose index differs from the
            member in its tar, whose scans are not what the index says, or the total that differs from the manifest.
    """
    data = DataSet(folder)
    table = data.samples()
    later = {patient for patients in data.manifest.later.values() for patient in patients}
    summary, also, keys = Summary(), set(later), list[str]()
    summary.patients |= later
    for number, shard in enumerate(data.manifest.shards):
        entries = check_shard(data.folder, shard)
        also.update(*(entry.also for entry in entries))
        _check_rows(data, number, entries, table[table["shard"] == number], len(keys))
        summary.add(entries)
        keys += [entry.key for entry in entries]
    found = {name: report.scans for name, report in summary.modalities().items()}
    counts = (dict(summary.warnings), dict(summary.greys), MANIFEST_WITH_JPEG if summary.jpegs else VERSION)
    totals = (summary.scans, found, len(summary.patients), sorted(also), *counts)
    manifest = data.manifest
    if totals != (
        manifest.scans,
        manifest.modalities,
        manifest.patients,
        manifest.also,
        manifest.warnings,
        manifest.greys,
        manifest.version,
    ):
        raise UserError(
            f"{folder}: its shards hold {found} of {len(summary.patients)} patients, its manifest says otherwise"
        )
    if len(summary.keys) < summary.scans:
        raise UserError(f"{folder}: two scans have the same key; build the data set again")
    _check_near_duplicates(data, keys)
    _check_parent(data)
    if manifest.sources is not None:
        read_source_table(data)
    if contact_sheet is not None:
        draw_contact_sheet(data, contact_sheet)
    return CheckReport(
        folder=data.folder,
        scans=summary.scans,
        patients=len(summary.patients),
        shards=len(data.manifest.shards),
        bytes=sum(shard.bytes for shard in data.manifest.shards),
        modalities=summary.modalities(),
        duplicates=summary.scans - len(summary.contents),
        near_duplicates=manifest.near_duplicates,
        warnings=dict(summary.warnings),
        labels=dict(summary.labels),
        contact_sheet=contact_sheet,
    )


def _check_parent(data: DataSet) -> None:
    """The manifests of before scans were appended, and that the shards of the last one are still the first ones."""
    parent = data.manifest.parent
    if parent is None:
        return
    data.earlier_manifests()
    before = parse(Manifest, data.store.small(parent.file, parent.sha256), data.store.shown(parent.file))
    same = before.shards == data.manifest.shards[: parent.shards]
    if not same or (before.scans, len(before.shards)) != (parent.scans, parent.shards):
        raise UserError(f"{data.folder}: its manifest says otherwise of what it had before than {parent.file}")


def _check_rows(data: DataSet, number: int, entries: list[SampleEntry], rows: NDArray[np.void], first: int) -> None:
    shard, names = data.manifest.shards[number], sorted(data.manifest.modalities)
    counts = Counter(entry.modality for entry in entries)
    if counts != shard.modalities or not counts.keys() <= set(names):
        raise UserError(
            f"{data.folder}: shard {shard.name} holds other modalities than the manifest says; build it again"
        )
    if differs(rows, found_later(rows_of(number, entries, names), first, data.manifest.later)):
        raise UserError(f"{data.folder}: the table of its scans differs from shard {shard.name}; build it again")


def _check_near_duplicates(data: DataSet, keys: list[str]) -> None:
    """UserError where the list of near-duplicates names other scans than the rows that it gives, or is not counted."""
    record, found = data.manifest.near_duplicates, read_near_duplicates(data) or []
    if record is None:
        return
    named = all((keys[line.row], keys[line.kept_row]) == (line.key, line.kept_key) for line in found)
    if not named or count_scans(found) != (record.scans, record.others):
        raise UserError(f"{data.folder}: {record.file} names other scans than the shards hold; build it again")


def check_shard(folder: Path, shard: ShardRecord) -> list[SampleEntry]:
    """The entries of one shard, every member of it verified; UserError names the shard where one is not right."""
    with _opened(folder / shard.name) as stream:
        return _checked(folder, shard, stream)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """One file for the sum and for the members; UserError where another one, or another content, took its name."""
    with open(path, "rb") as stream:
        before = os.fstat(stream.fileno())
        yield stream
        after, now = os.fstat(stream.fileno()), path.stat()
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size) or not samestat(after, now):
            raise UserError(f"shard {path} was replaced while it was read; check again")


def _checked(folder: Path, shard: ShardRecord, stream: BinaryIO) -> list[SampleEntry]:
    path = folder / shard.name
    if sha256_of(stream) != shard.sha256:
        raise UserError(f"shard {path} is damaged (its sha256 is not the manifest's); copy or build it again")
    index = read_index(folder, shard)
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar, closing(ShardReader(folder, shard)) as reader:
            members = {member.name: member for member in tar}
            if len(members) < len(tar.getmembers()):
                raise ValueError("two of its members have the same name")
            _check_index(tar, members, hashlib.sha256((folder / index_name(shard.name)).read_bytes()).hexdigest())
            for number, entry in enumerate(index.samples):
                if entry.jpeg is None:
                    _check_sample(tar, members, entry)
                if content_hash(reader.read(number)) != entry.content:
                    raise ValueError(f"scan {entry.key} has other voxels than its index says")
                reader.read_mask(number)
            packs = check_packs(tar, index.samples)
    except Exception as error:  # damage can take tarfile and the decoders anywhere
        raise UserError(f"shard {path} is damaged: {' '.join(str(error).split())}; build it again") from error
    alone = [entry for entry in index.samples if entry.jpeg is None]
    count = sum(2 + (entry.mask is not None) + (entry.blocks is not None) for entry in alone) + packs + 1
    if len(members) != count:
        raise UserError(f"shard {path} holds {len(members)} members instead of {count}; build it again")
    return index.samples


def _payload(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # Neither a link nor a sparse file, which a few bytes make as long as they like.
    stream = tar.extractfile(member) if member.type == tarfile.REGTYPE else None
    if stream is None:
        raise ValueError(f"{member.name} is no file")
    return stream.read()


def _check_index(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], digest: str) -> None:
    name = f"{INDEX_KEY}.json"
    if list(members)[-1] != name or hashlib.sha256(_payload(tar, members[name])).hexdigest() != digest:
        raise ValueError("its last member is not its index")


def _check_sample(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], entry: SampleEntry) -> None:
    _check_member(tar, members[f"{entry.key}.b2nd"], entry, entry.key)
    if entry.mask is not None:
        _check_member(tar, members[f"{entry.key}.mask.b2nd"], entry.mask, f"{entry.key}.mask")
    if entry.blocks is not None:
        _check_member(tar, members[f"{entry.key}.blocks"], entry.blocks, f"{entry.key}.blocks")
        table = block_table(_payload(tar, members[f"{entry.key}.b2nd"]))
        if table is None or table.to_bytes() != _payload(tar, members[f"{entry.key}.blocks"]):
            raise ValueError(f"{entry.key}.blocks is not the table of its scan's blocks")
    if _payload(tar, members[f"{entry.key}.json"]) != to_json(entry.scan_facts()):
        raise ValueError(f"scan {entry.key} has other facts than its index says")


def _check_member(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Member, name: str) -> None:
    payload = _payload(tar, member)
    if (member.offset_data, member.size, crc32(payload)) != (place.offset, place.length, place.crc32):
        raise ValueError(f"{name} lies elsewhere than its index says")
