"""The end of a build: shards without duplicates are moved into place, then the table and the manifest are written."""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.discovery.quarantine import Quarantined
from scanfoundry.datasets.shards.duplicates import Dropped, Kept, SampleId, find_duplicates
from scanfoundry.datasets.shards.encode import Codec, Encoded
from scanfoundry.datasets.shards.format import (
    MANIFEST,
    SAMPLES,
    VERSION,
    FinalShard,
    Manifest,
    Member,
    SampleEntry,
    ShardRecord,
    index_name,
    parse,
    to_json,
)
from scanfoundry.datasets.shards.near_list import NearDuplicateFinder, write_near_duplicates
from scanfoundry.datasets.shards.reader import read_index
from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardResult
from scanfoundry.datasets.shards.table import rows_of, to_bytes
from scanfoundry.datasets.shards.thumbnail import read_thumbnails, thumbnails_path
from scanfoundry.datasets.shards.writer import ShardWriter

Decisions = dict[SampleId, Kept | Dropped]


def final_path(out: Path, shard: str) -> Path:
    """Exists when the shard is in its place; until then its tar is in the partial folder."""
    return out / PARTIAL / f"{shard}.final.json"


def finalize(
    out: Path, parameters: dict[str, Any], results: Sequence[ShardResult], codec: Codec
) -> tuple[Manifest, list[Quarantined]]:
    """Move the shards of the partial folder into `out`, without scans that others repeat voxel by voxel.

    A call that is killed can be repeated and ends with the same bytes. `write_manifest` then completes the build.

    Args:
        out: folder of the data set.
        parameters: what its bytes depend on, for the manifest.
        results: of all shards, in their order.
        codec: of frames that are written anew.

    Returns:
        The manifest, not written yet, and one line of quarantine.jsonl for each duplicate.

    Raises:
        UserError: a shard in the partial folder is damaged.
    """
    written = [result for result in results if result.record is not None]
    decisions = find_duplicates(lambda: _walk(out, written))
    shards = [
        record for number, result in enumerate(written) if (record := _place(out, number, result, decisions, codec))
    ]
    modalities = sum((Counter(shard.modalities) for shard in shards), Counter[str]())
    patients: set[str] = set()
    also: set[str] = set()
    warnings, greys = Counter[str](), Counter[str]()
    rows, finder = [], NearDuplicateFinder()
    for number, shard in enumerate(shards):
        entries = read_index(out, shard).samples
        rows.append(rows_of(number, entries, sorted(modalities)))
        finder.add(entries)
        patients.update(entry.patient for entry in entries)
        also.update(*(entry.also for entry in entries))
        warnings.update(warning for entry in entries for warning in entry.warnings)
        greys.update(entry.mask.greys for entry in entries if entry.mask is not None and entry.mask.greys)
    near = finder.find(
        lambda: (entry for shard in shards for entry in read_index(out, shard).samples),
        lambda: _thumbnails(out, written, decisions),
    )
    table = to_bytes(np.concatenate(rows))
    write_bytes(out / SAMPLES, table)
    manifest = Manifest(
        version=VERSION,
        tool=f"scanfoundry {version('scanfoundry')}",
        parameters=parameters,
        scans=sum(shard.samples for shard in shards),
        patients=len(patients | also),
        also=sorted(also),
        modalities=dict(sorted(modalities.items())),
        warnings=dict(sorted(warnings.items())),
        greys=dict(sorted(greys.items())),
        samples_sha256=hashlib.sha256(table).hexdigest(),
        near_duplicates=write_near_duplicates(out, near),
        shards=shards,
    )
    return manifest, list(_lines(written, decisions))


def write_manifest(out: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder a data set, and remove the partial folder."""
    write_bytes(out / MANIFEST, to_json(manifest, indent=1))
    shutil.rmtree(out / PARTIAL)


def _walk(out: Path, results: Sequence[ShardResult]) -> Iterator[tuple[SampleId, SampleEntry]]:
    for number, result in enumerate(results):
        if result.record is not None:
            for sample, entry in enumerate(read_index(out / PARTIAL, result.record).samples):
                yield (number, sample), entry


def _thumbnails(out: Path, results: Sequence[ShardResult], decisions: Decisions) -> Iterator[NDArray[np.int8]]:
    """The descriptors of the scans that stay, shard by shard."""
    for number, result in enumerate(results):
        assert result.record is not None
        samples = range(result.record.samples)
        stay = [sample for sample in samples if not isinstance(decisions.get((number, sample)), Dropped)]
        yield read_thumbnails(thumbnails_path(out / PARTIAL, result.record.name), len(samples))[stay]


def _lines(results: Sequence[ShardResult], decisions: Decisions) -> Iterator[Quarantined]:
    for (shard, sample), decision in decisions.items():
        if isinstance(decision, Dropped):
            twin = results[decision.twin[0]].paths[decision.twin[1]]
            reason = f"has the same voxels as {twin}" + ("; their labels differ" if decision.labels_differ else "")
            yield Quarantined(path=results[shard].paths[sample], kind="duplicate", reason=reason)


def _place(out: Path, number: int, result: ShardResult, decisions: Decisions, codec: Codec) -> ShardRecord | None:
    """One shard into `out`; its record there, None where nothing of it is left."""
    record = result.record
    assert record is not None
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
