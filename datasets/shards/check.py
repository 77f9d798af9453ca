"""`scanforge data check`: is every byte of a data set what was built, and what does it hold."""

import hashlib
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np

from scanforge.configs.errors import UserError
from scanforge.datasets.shards.contact_sheet import draw_contact_sheet
from scanforge.datasets.shards.format import (
    INDEX_KEY,
    SampleEntry,
    ScanFacts,
    ShardRecord,
    index_name,
    sha256_of,
    to_json,
)
from scanforge.datasets.shards.reader import DataSet, read_index

Triple = tuple[float, ...]


@dataclass(frozen=True)
class ModalityReport:
    """Ranges over the scans of one modality: (smallest, largest) per axis."""

    scans: int
    shape: tuple[Triple, Triple]  # C, D, H, W
    spacing: tuple[Triple, Triple]  # D, H, W in mm
    intensity: tuple[float, float]


@dataclass(frozen=True)
class CheckReport:
    """What a whole and undamaged data set holds."""

    folder: Path
    scans: int
    patients: int
    shards: int
    bytes: int
    modalities: dict[str, ModalityReport]
    contact_sheet: Path | None


def check(folder: Path, contact_sheet: Path | None = None) -> CheckReport:
    """Verifies every shard of `folder`, draws its contact sheet (PNG) where a path for it is given.

    Raises UserError that names the shard for: missing or cut shards, wrong sha256 or crc, an index that differs from
    the member in the tar, scans that are not what their index says, totals that differ from the manifest's.
    """
    data = DataSet(folder)
    entries = [entry for shard in data.manifest.shards for entry in check_shard(data.folder, shard)]
    modalities = {name: _ranges(entries, name) for name in sorted({entry.modality for entry in entries})}
    patients = len({entry.patient for entry in entries})
    found = {name: report.scans for name, report in modalities.items()}
    if (found, patients) != (data.manifest.modalities, data.manifest.patients):
        raise UserError(f"{folder}: its shards hold {found} of {patients} patients, its manifest says otherwise")
    if len({entry.key for entry in entries}) < len(entries):
        raise UserError(f"{folder}: two scans have the same key; build the data set again")
    if contact_sheet is not None:
        draw_contact_sheet(data, contact_sheet)
    total = sum(shard.bytes for shard in data.manifest.shards)
    return CheckReport(data.folder, len(entries), patients, len(data.manifest.shards), total, modalities, contact_sheet)


def _ranges(entries: Iterable[SampleEntry], modality: str) -> ModalityReport:
    chosen = [entry for entry in entries if entry.modality == modality]
    shapes = np.array([entry.shape for entry in chosen])
    spacings = np.array([entry.spacing for entry in chosen])
    return ModalityReport(
        scans=len(chosen),
        shape=(tuple(shapes.min(0).tolist()), tuple(shapes.max(0).tolist())),
        spacing=(tuple(spacings.min(0).tolist()), tuple(spacings.max(0).tolist())),
        intensity=(min(entry.stats["min"] for entry in chosen), max(entry.stats["max"] for entry in chosen)),
    )


def check_shard(folder: Path, shard: ShardRecord) -> list[SampleEntry]:
    """The entries of one shard, every member of it verified; UserError names the shard where one is not right."""
    path = folder / shard.name
    if sha256_of(path) != shard.sha256:
        raise UserError(f"shard {path} is damaged (its sha256 is not the manifest's); copy or build it again")
    index = read_index(folder, shard)
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name: member for member in tar}
            _check_index(tar, members, hashlib.sha256((folder / index_name(shard.name)).read_bytes()).hexdigest())
            for entry in index.samples:
                _check_sample(tar, members, entry)
    except (tarfile.TarError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"shard {path} is damaged: {' '.join(str(error).split())}; build it again") from error
    if len(index.samples) != shard.samples or len(members) != 2 * shard.samples + 1:
        raise UserError(f"shard {path} holds {len(index.samples)} scans instead of {shard.samples}; build it again")
    return index.samples


def _payload(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise ValueError(f"{member.name} is no file")
    return stream.read()


def _check_index(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], digest: str) -> None:
    name = f"{INDEX_KEY}.json"
    if list(members)[-1] != name or hashlib.sha256(_payload(tar, members[name])).hexdigest() != digest:
        raise ValueError("its last member is not its index")


def _check_sample(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], entry: SampleEntry) -> None:
    member = members[f"{entry.key}.b2nd"]
    payload = _payload(tar, member)
    if (member.offset_data, member.size, zlib.crc32(payload)) != (entry.offset, entry.length, entry.crc32):
        raise ValueError(f"scan {entry.key} lies elsewhere than its index says")
    array = blosc2.ndarray_from_cframe(payload)
    if array.shape != entry.shape or array.dtype.name != entry.dtype:
        raise ValueError(f"scan {entry.key} is {array.dtype.name} {array.shape}, its index says otherwise")
    facts = ScanFacts(**entry.model_dump(exclude={"offset", "length", "crc32"}))
    if _payload(tar, members[f"{entry.key}.json"]) != to_json(facts):
        raise ValueError(f"scan {entry.key} has other facts than its index says")
