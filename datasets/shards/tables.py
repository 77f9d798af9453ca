"""The tables of a data set and its manifest, from its shards' indices, and from the parent's where it has one."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.shards.format import (
    MANIFEST,
    MANIFEST_WITH_JPEG,
    NEAR_DUPLICATES,
    SAMPLES,
    SOURCES,
    VERSION,
    Manifest,
    NearDuplicateRecord,
    SampleEntry,
    ShardRecord,
    SourcesRecord,
)
from scanfoundry.datasets.shards.near_list import (
    NearDuplicate,
    NearDuplicateFinder,
    read_near_duplicates,
    write_near_duplicates,
)
from scanfoundry.datasets.shards.parent import Parent
from scanfoundry.datasets.shards.shard_worker import PARTIAL
from scanfoundry.datasets.shards.source_table import parse_sources, read_source_table
from scanfoundry.datasets.shards.table import found_later, rows_of, to_bytes


class ShardSums:
    """What the manifest says of all scans, and their rows, gathered shard by shard.

    Args:
        shards: that are new.
        parent: the data set that they are appended to.

    Attributes:
        shards: all of them.
        modalities: how many scans each has, in all shards.
        rows: of the table, for each new shard that was added.
        version: of the manifest, the oldest that knows what is in all shards.
    """

    def __init__(self, shards: Sequence[ShardRecord], parent: Parent | None) -> None:
        before = [] if parent is None else parent.manifest.shards
        self._first, self.shards = len(before), [*before, *shards]
        self.modalities = sum((Counter(shard.modalities) for shard in self.shards), Counter[str]())
        self.rows: list[NDArray[np.void]] = []
        self.patients: set[str] = set()
        self.also: set[str] = set()
        self.warnings, self.greys = Counter[str](), Counter[str]()
        self.version: Literal[2, 3] = VERSION
        self.finder = NearDuplicateFinder()

    def add(self, entries: Sequence[SampleEntry]) -> None:
        """The scans of the next shard."""
        self.finder.add(entries)
        self.rows.append(rows_of(self._first + len(self.rows), entries, sorted(self.modalities)))
        self.patients.update(entry.patient for entry in entries)
        self.also.update(*(entry.also for entry in entries))
        self.warnings.update(warning for entry in entries for warning in entry.warnings)
        self.greys.update(entry.mask.greys for entry in entries if entry.mask is not None and entry.mask.greys)
        if any(entry.jpeg is not None for entry in entries):
            self.version = MANIFEST_WITH_JPEG

    def add_parent(self, manifest: Manifest, table: NDArray[np.void]) -> None:
        """The scans of the data set that the shards are appended to."""
        self.patients.update(patient.decode() for patient in np.unique(table["patient"]))
        self.also.update(manifest.also)
        self.warnings.update(manifest.warnings)
        self.greys.update(manifest.greys)
        self.version = max(self.version, manifest.version)


def write_tables(
    out: Path,
    parameters: dict[str, Any],
    sums: ShardSums,
    near: Sequence[NearDuplicate],
    parent: Parent | None,
    later: Mapping[int, list[str]],
) -> Manifest:
    """Write the tables of a data set.

    Args:
        out: its folder. The tables of a parent stay: those of an append have names of their own.
        parameters: of the build.
        sums: over the new shards; those of the parent are added.
        near: near-duplicates among the new scans, by their rows.
        parent: the data set that they are appended to.
        later: patients under whom rows of the parent were found again.

    Returns:
        The manifest, not written yet.
    """
    tables = [] if parent is None else [_renumbered(parent, sorted(sums.modalities), later)]
    table = np.concatenate([*tables, *sums.rows])
    if parent is not None:
        sums.add_parent(parent.manifest, tables[0])
        near = [replace(line, row=line.row + len(tables[0]), kept_row=line.kept_row + len(tables[0])) for line in near]
        write_bytes(out / parent.record.file, (out / MANIFEST).read_bytes())
    merged = {row: sorted(set(patients)) for row, patients in _merged(parent, later).items()}
    sums.also.update(*merged.values())
    content = to_bytes(table)
    write_bytes(out / _named(SAMPLES, parent), content)
    return Manifest(
        version=sums.version,
        tool=f"scanfoundry {version('scanfoundry')}",
        parameters=parameters,
        scans=len(table),
        patients=len(sums.patients | sums.also),
        also=sorted(sums.also),
        later=merged,
        modalities=dict(sorted(sums.modalities.items())),
        warnings=dict(sorted(sums.warnings.items())),
        greys=dict(sorted(sums.greys.items())),
        samples=_named(SAMPLES, parent),
        samples_sha256=hashlib.sha256(content).hexdigest(),
        near_duplicates=_write_near(out, near, parent),
        sources=_write_sources(out, parent),
        parent=None if parent is None else parent.record,
        shards=sums.shards,
    )


def _named(file: str, parent: Parent | None) -> str:
    """The name of a table: 'samples.npy', and 'samples-000001.npy' after the first append."""
    stem, _, suffix = file.rpartition(".")
    return file if parent is None else f"{stem}-{parent.generation:06d}.{suffix}"


def _renumbered(parent: Parent, modalities: list[str], later: Mapping[int, list[str]]) -> NDArray[np.void]:
    """The parent's rows with the numbers that modalities have now."""
    rows = found_later(parent.table, 0, later)
    numbers = np.array([modalities.index(name) for name in parent.data.modalities], rows["modality"].dtype)
    rows["modality"] = numbers[rows["modality"]]
    return rows


def _merged(parent: Parent | None, later: Mapping[int, list[str]]) -> dict[int, list[str]]:
    before = {} if parent is None else parent.manifest.later
    return {row: [*before.get(row, []), *later.get(row, [])] for row in sorted({*before, *later})}


def _write_near(out: Path, near: Sequence[NearDuplicate], parent: Parent | None) -> NearDuplicateRecord | None:
    """The list of the parent with the new lines; None where the parent's scans were never looked at."""
    before = [] if parent is None else read_near_duplicates(parent.data)
    return None if before is None else write_near_duplicates(out, [*before, *near], _named(NEAR_DUPLICATES, parent))


def _write_sources(out: Path, parent: Parent | None) -> SourcesRecord | None:
    """The table of what was read, behind that of the parent; None where either is not known."""
    path = out / PARTIAL / SOURCES
    tables = [] if parent is None else [read_source_table(parent.data)]
    tables.append(parse_sources(path.read_bytes(), str(path)) if path.exists() else None)
    known = [table for table in tables if table is not None]
    if len(known) < len(tables):
        return None
    content = to_bytes(np.concatenate(known))
    write_bytes(out / _named(SOURCES, parent), content)
    return SourcesRecord(file=_named(SOURCES, parent), sha256=hashlib.sha256(content).hexdigest())
