"""The end of a build: shards without duplicates are moved into place, then the table and the manifest are written."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.discovery.quarantine import Quarantined, write_quarantine
from scanfoundry.datasets.shards.build_plan import BuildPlan
from scanfoundry.datasets.shards.build_progress import BuildProgress, all_lines, read_result
from scanfoundry.datasets.shards.duplicates import (
    Dropped,
    Kept,
    SampleId,
    Walk,
    count_labels,
    find_duplicates,
    labels_differ,
)
from scanfoundry.datasets.shards.encode import Codec, Encoded
from scanfoundry.datasets.shards.format import (
    MANIFEST,
    FinalShard,
    Manifest,
    Member,
    SampleEntry,
    ShardRecord,
    index_name,
    parse,
    to_json,
)
from scanfoundry.datasets.shards.parent import Parent
from scanfoundry.datasets.shards.reader import read_index
from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardResult
from scanfoundry.datasets.shards.tables import ShardSums, write_tables
from scanfoundry.datasets.shards.thumbnail import read_thumbnails, thumbnails_path
from scanfoundry.datasets.shards.writer import ShardWriter

_OPEN = 256  # results of shards that are held to name the files of duplicates
Decisions = dict[SampleId, Kept | Dropped]


def final_path(out: Path, shard: str) -> Path:
    """Exists when the shard is in its place; until then its tar is in the partial folder."""
    return out / PARTIAL / f"{shard}.final.json"


def finalize(
    out: Path, parameters: dict[str, Any], results: Iterable[ShardResult], codec: Codec, parent: Parent | None = None
) -> tuple[Manifest, list[Quarantined]]:
    """Move the shards of the partial folder into `out`, without scans that others repeat voxel by voxel.

    A call that is killed can be repeated and ends with the same bytes. `write_manifest` then completes the build.

    Args:
        out: folder of the data set.
        parameters: what its bytes depend on, for the manifest.
        results: of all shards, in order; only what is needed of each is kept.
        codec: of frames that are written anew.
        parent: the data set in `out` that the shards are appended to.

    Returns:
        The manifest, not written yet, and one line of quarantine.jsonl for each duplicate.

    Raises:
        UserError: a shard in the partial folder is damaged.
    """
    written = [result.record for result in results if result.record is not None]
    decisions = find_duplicates(lambda: _walk(out, written))
    later: dict[int, list[str]] = {}
    if parent is not None:
        later = _drop_stored(parent, lambda: _walk(out, written), decisions)
    shards = [
        final for number, record in enumerate(written) if (final := _place(out, number, record, decisions, codec))
    ]
    sums = _summed(out, shards, parent)
    near = sums.finder.find(
        lambda: (entry for shard in shards for entry in read_index(out, shard).samples),
        lambda: _thumbnails(out, written, decisions),
    )
    manifest = write_tables(out, parameters, sums, near, parent, later)
    return manifest, list(_lines(out, written, decisions))


def _drop_stored(parent: Parent, walk: Walk, decisions: Decisions) -> dict[int, list[str]]:
    """Decide that scans which the parent holds are left out; returns, by its rows, the patients who are new there."""
    later: dict[int, set[str]] = defaultdict(set)
    for place, (entry, row, stored) in parent.twins(walk()).items():
        decisions[place] = Dropped(None, labels_differ(stored, entry), count_labels(entry) > 0)
        later[row] |= {entry.patient} - set(stored.all_patients())
    return {row: sorted(patients) for row, patients in sorted(later.items()) if patients}


def _summed(out: Path, shards: Sequence[ShardRecord], parent: Parent | None) -> ShardSums:
    sums = ShardSums(shards, parent)
    for shard in shards:
        sums.add(read_index(out, shard).samples)
    return sums


def complete_build(
    out: Path, parameters: dict[str, Any], plan: BuildPlan, done: BuildProgress, parent: Parent | None = None
) -> Manifest:
    """Make a data set of the finished shards of a build, and remove its partial folder.

    Args:
        out: folder of the data set.
        parameters: what its bytes depend on.
        plan: of the build.
        done: all its shards.
        parent: the data set in `out` that they are appended to.

    Returns:
        The manifest, which is written.
    """
    results = (read_result(out, name) for name in plan.names)
    manifest, duplicates = finalize(out, parameters, results, parameters["codec"], parent)
    write_quarantine(out, all_lines(out, [*done.quarantine(), *duplicates]))
    write_manifest(out, manifest)
    return manifest


def write_manifest(out: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder a data set, and remove the partial folder."""
    write_bytes(out / MANIFEST, to_json(manifest, indent=1))
    shutil.rmtree(out / PARTIAL)


def _walk(out: Path, records: Sequence[ShardRecord]) -> Iterator[tuple[SampleId, SampleEntry]]:
    for number, record in enumerate(records):
        for sample, entry in enumerate(read_index(out / PARTIAL, record).samples):
            yield (number, sample), entry


def _thumbnails(out: Path, records: Sequence[ShardRecord], decisions: Decisions) -> Iterator[NDArray[np.int8]]:
    """The descriptors of the scans that stay, shard by shard."""
    for number, record in enumerate(records):
        samples = range(record.samples)
        stay = [sample for sample in samples if not isinstance(decisions.get((number, sample)), Dropped)]
        yield read_thumbnails(thumbnails_path(out / PARTIAL, record.name), len(samples))[stay]


def _lines(out: Path, records: Sequence[ShardRecord], decisions: Decisions) -> Iterator[Quarantined]:
    @lru_cache(_OPEN)
    def paths(shard: int) -> list[str]:
        return read_result(out, records[shard].name).paths

    for (shard, sample), decision in decisions.items():
        if isinstance(decision, Dropped):
            place = decision.twin
            twin = "a scan that was stored before" if place is None else paths(place[0])[place[1]]
            reason = f"has the same voxels as {twin}" + ("; their labels differ" if decision.labels_differ else "")
            if decision.labels_lost:
                reason += "; its labels are not taken over"
            yield Quarantined(path=paths(shard)[sample], kind="duplicate", reason=reason)


def _place(out: Path, number: int, record: ShardRecord, decisions: Decisions, codec: Codec) -> ShardRecord | None:
    """One shard into `out`; its record there, None where nothing of it is left."""
    done = final_path(out, record.name)
    if done.exists():
        return parse(FinalShard, done.read_bytes(), str(done)).record
    source = out / PARTIAL / record.name
    if any((number, sample) in decisions for sample in range(record.samples)):
        final = _rewritten(out, number, record, decisions, codec)
    else:
        # The tar stays until the record is written: a link is no copy.
        for name in (record.name, index_name(record.name)):
            (out / name).unlink(missing_ok=True)
            _link(out / PARTIAL / name, out / name)
        final = record
    write_bytes(done, to_json(FinalShard(record=final)))
    source.unlink()
    return final


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # exFAT, SMB, mounted object stores
        shutil.copyfile(source, target)


def _rewritten(out: Path, number: int, record: ShardRecord, decisions: Decisions, codec: Codec) -> ShardRecord | None:
    """The shard without its dropped scans, and with what is known of the twins of those that stay."""
    with open(out / PARTIAL / record.name, "rb") as stream, ShardWriter(out / record.name, codec) as writer:

        def payload(member: Member) -> bytes:
            content = os.pread(stream.fileno(), member.length, member.offset)
            if crc32(content) != member.crc32:  # it gets a new checksum, which would hide that
                raise UserError(f"shard {out / PARTIAL / record.name} is damaged; delete it and build again")
            return content

        for sample, entry in enumerate(read_index(out / PARTIAL, record).samples):
            decision = decisions.get((number, sample))
            if isinstance(decision, Dropped):
                continue
            facts = entry.scan_facts()
            mask = None
            if entry.mask is not None:
                encoded = Encoded(payload(entry.mask), entry.mask.stored, None, entry.mask.rows)
                mask = (encoded, entry.mask.dtype, entry.mask.greys)
            facts = facts if decision is None else decision.apply(facts)
            writer.append(facts, payload(entry), entry.content, mask)
    return writer.record
