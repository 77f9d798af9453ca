"""`quarantine.jsonl`: every file that is not in the shards as it was given, and why. It names paths: never a shard."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from scanfoundry.configs.files import write_bytes
from scanfoundry.configs.text import printable_json

QUARANTINE = "quarantine.jsonl"
# refused: a scan that cannot be read or trusted; it counts against the ceiling
# skipped: no scan by its nature, such as a report
# duplicate: its voxels are in the shards already; label: stored without a label that does not fit it
QuarantineKind = Literal["refused", "skipped", "duplicate", "label"]


class Quarantined(BaseModel):
    """One line: a file. Of a scan of several files each has one; `first` names the file that stands for the scan."""

    model_config = ConfigDict(frozen=True)
    path: str
    kind: QuarantineKind = "refused"
    reason: str
    first: str | None = None  # where it is another one than `path`


def write_quarantine(out: Path, entries: Sequence[Quarantined]) -> None:
    """All lines, by path, into the folder `out`."""
    entries = sorted(entries, key=lambda entry: (entry.path, entry.kind, entry.reason))
    lines = [printable_json(entry.model_dump_json(exclude_none=True)).encode() + b"\n" for entry in entries]
    write_bytes(out / QUARANTINE, b"".join(lines))


def read_quarantine(out: Path) -> list[Quarantined]:
    """The lines in the folder `out`; none where it has no such file."""
    path = out / QUARANTINE
    if not path.exists():
        return []
    return [Quarantined.model_validate_json(line) for line in path.read_bytes().splitlines()]


def count(entries: Sequence[Quarantined]) -> dict[str, int]:
    """The number of scans that are left out, by kind. Further files of one scan are not counted."""
    return dict(Counter[str](entry.kind for entry in entries if entry.first is None))
