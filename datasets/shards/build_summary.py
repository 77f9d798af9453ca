"""What a build did, counted."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scanfoundry.datasets.discovery.quarantine import count, read_quarantine
from scanfoundry.datasets.discovery.sources import PlannedSource, shown
from scanfoundry.datasets.readers import plain_suffix
from scanfoundry.datasets.shards.build_plan import BuildPlan
from scanfoundry.datasets.shards.format import NEAR_DUPLICATES, Manifest


@dataclass(frozen=True)
class BuildSummary:
    """What a build did.

    Attributes:
        sources: files, series and videos that were read or tried.
        resumed_shards: finished by an earlier build that was interrupted.
        quarantined: lines of quarantine.jsonl by kind.
        ignored: files that are no scan, by suffix.
        notes: what a person should know of labels, large scans and near-duplicates.
        source_bytes: size of all source files; `bytes`: of all shards.
    """

    out: Path
    sources: int
    scans: int
    patients: int
    shards: int
    resumed_shards: int  # finished by an earlier, interrupted build
    quarantined: dict[str, int]
    ignored: dict[str, int]
    warnings: dict[str, int]
    unused_labels: int
    near_duplicates: int  # listed in near_duplicates.csv
    notes: list[str]  # what a person should know of the labels
    source_bytes: int
    bytes: int


@dataclass(frozen=True)
class PartSummary:
    """What one part of a build did: its own shards and sources, and the shards of all parts."""

    out: Path
    part: str
    shards: int
    sources: int
    resumed_shards: int
    all_shards: int
    notes: list[str]


def summary_of(out: Path, plan: BuildPlan, complete: Manifest, resumed: int, notes: Sequence[str] = ()) -> BuildSummary:
    """The summary of a data set that is complete; `notes` are of what was done now."""
    lines = read_quarantine(out)
    return BuildSummary(
        out=out,
        sources=plan.sources,
        scans=complete.scans,
        patients=complete.patients,
        shards=len(complete.shards),
        resumed_shards=resumed,
        quarantined=count([line for line in lines if line.kind != "skipped"]),
        ignored=by_suffix(line.path for line in lines if line.kind == "skipped"),
        warnings=complete.warnings,
        unused_labels=plan.unused_labels,
        near_duplicates=0 if complete.near_duplicates is None else complete.near_duplicates.scans,
        notes=[*plan.notes, *notes, *_notes_on_greys(complete), *_notes_on_near_duplicates(out, complete)],
        source_bytes=plan.source_bytes,
        bytes=sum(shard.bytes for shard in complete.shards),
    )


def by_suffix(paths: Iterable[str]) -> dict[str, int]:
    """How many of some files have each suffix."""
    return dict(sorted(Counter(plain_suffix(path) for path in paths).items()))


def notes_on_large(sources: Sequence[PlannedSource], shard_bytes: int) -> list[str]:
    """A note on sources that are larger than a shard should be."""
    large = [each.source for each in sources if each.source.size > shard_bytes]
    if not large:
        return []
    largest = max(large, key=lambda source: (source.size, source.relative))
    several = "1 scan fills a shard by itself" if len(large) == 1 else f"{len(large)} scans fill a shard each"
    return [f"{several}: {shown(largest.relative)} has {largest.size / 2**20:.3g} MiB; --shard-mb may be larger"]


def _notes_on_greys(complete: Manifest) -> list[str]:
    """Notes on masks that were drawn in black and white."""
    cut, white = complete.greys.get("cut", 0), sum(complete.greys.values())
    notes = [f"{white} masks hold 0 and 255 alone and are stored as 0 and 1"] if white else []
    return notes + ([f"{cut} of these held greys (lossy compression) and were cut at half"] if cut else [])


def _notes_on_near_duplicates(out: Path, complete: Manifest) -> list[str]:
    """A note on scans that nearly repeat another one."""
    found = complete.near_duplicates
    if found is None or not found.scans:
        return []
    return [
        f"{found.scans} near-duplicates ({found.others} of another patient's scan) are listed in "
        f"{out / NEAR_DUPLICATES}; in a pre-training, data.sources.0.near_duplicates=drop leaves them out"
    ]
