"""What a build works on: the source files in their order, dealt to shards before the first is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import keyed_hash, patient_of
from scanforge.datasets.readers import find_files

MAX_FILES = 512  # in a shard, whatever their size


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `order` is its keyed hash: it sorts the files and names their samples."""

    path: Path
    relative: str
    size: int
    modified: int  # ns
    order: str
    patient: str  # keyed hash


@dataclass(frozen=True)
class ShardPlan:
    """The files that make up one shard; it depends on no other shard."""

    name: str
    files: list[SourceFile]


def find_sources(
    inputs: Sequence[Path], key: bytes, patient_regex: str | None
) -> tuple[list[SourceFile], dict[str, int]]:
    """Every readable kind of file under `inputs` by keyed hash, and the others counted by suffix.

    UserError where there is none, and where two inputs hold the same relative path (their samples would collide).
    """
    found, ignored = find_files(inputs)
    if not found:
        seen = ", ".join(f"{count} {suffix}" for suffix, count in ignored.items()) or "nothing"
        raise UserError(f"no scans in {', '.join(map(str, inputs))} (found {seen}); NIfTI, PNG and JPEG are read")
    files = []
    for root, relative in found:
        status = (root / relative).stat()
        order = keyed_hash(key, "scan", relative)
        patient = keyed_hash(key, "patient", patient_of(relative, patient_regex))
        files.append(SourceFile(root / relative, relative, status.st_size, status.st_mtime_ns, order, patient))
    files.sort(key=lambda file: file.order)
    for file, following in pairwise(files):
        if file.order == following.order:
            raise UserError(f"two inputs hold '{file.relative}': give their common parent, or build two data sets")
    return files, ignored


def deal(files: Sequence[SourceFile], shard_bytes: int) -> list[ShardPlan]:
    """`files` in order into shards of about `shard_bytes` of source files, at most `MAX_FILES` each."""
    plans: list[ShardPlan] = []
    current: list[SourceFile] = []
    size = 0
    for file in files:
        if current and (size + file.size > shard_bytes or len(current) == MAX_FILES):
            plans.append(ShardPlan(f"shard-{len(plans):06d}.tar", current))
            current, size = [], 0
        current.append(file)
        size += file.size
    plans.append(ShardPlan(f"shard-{len(plans):06d}.tar", current))
    return plans
