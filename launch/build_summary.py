"""What a build did, in words for the terminal."""

from scanfoundry.configs.text import printable
from scanfoundry.datasets.shards.build_summary import BuildSummary, PartSummary


def describe_build(summary: BuildSummary) -> str:
    """One line for people: what came in, what was stored, what could not be read."""
    text = (
        f"{summary.out}: {summary.scans} scans of {summary.patients} patients from {summary.sources} sources "
        f"in {summary.shards} shards ({summary.bytes / 2**20:.1f} MiB)"
    )
    if summary.resumed_shards:
        text += f"; {summary.resumed_shards} shards were there already"
    told = {
        "refused": "could not be read or trusted",
        "duplicate": "were duplicates and are stored once",
        "label": "had a label that does not fit",
    }
    lines = [f"{summary.quarantined[kind]} {what}" for kind, what in told.items() if summary.quarantined.get(kind)]
    if lines:
        text += f"; {', '.join(lines)}, see {summary.out / 'quarantine.jsonl'}"
    if summary.unused_labels:
        text += f"; {summary.unused_labels} labels name no scan"
    if summary.warnings:
        text += "; look at " + ", ".join(f"{count} {name}" for name, count in summary.warnings.items())
    if summary.ignored:
        text += "; no scans: " + ", ".join(f"{count} {suffix}" for suffix, count in summary.ignored.items())
    return "\n  ".join(printable(line) for line in [text, *summary.notes])


def describe_part(summary: PartSummary) -> str:
    """One line for people: what a part did, and what comes next."""
    text = (
        f"{summary.out}: part {summary.part}: {summary.shards} of {summary.all_shards} shards, "
        f"{summary.sources} sources"
    )
    if summary.resumed_shards:
        text += f"; {summary.resumed_shards} of them were there already"
    text += "; when all parts are done, 'scanfoundry data merge' makes a data set of them"
    return "\n  ".join(printable(line) for line in [text, *summary.notes])
