"""The part of a build that runs in a worker process: one shard from its files."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import blosc2
from pydantic import BaseModel, ConfigDict

from scanforge.datasets.identity import keyed_hash
from scanforge.datasets.readers import ReadError, Scan, read
from scanforge.datasets.shards.format import ShardRecord, to_json, write_atomically
from scanforge.datasets.shards.sources import ShardPlan, SourceFile
from scanforge.datasets.shards.writer import Codec, ShardWriter

PARTIAL = ".partial"  # in the data set's folder: what is known of finished shards, until all are


class Quarantined(BaseModel):
    """A file that could not be used. It names the source, so it never enters a shard or the manifest."""

    model_config = ConfigDict(frozen=True)
    path: str
    reason: str


class ShardResult(BaseModel):
    """A finished shard; `record` is None where none of its files could be read."""

    record: ShardRecord | None
    patients: list[str]
    files: int
    quarantine: list[Quarantined]


@dataclass(frozen=True)
class Job:
    """One shard to write into the folder `out`."""

    plan: ShardPlan
    out: Path
    key: bytes
    modality: str
    codec: Codec


@dataclass(frozen=True)
class Reading:
    """Progress: the worker turns to file `number` of the job."""

    number: int


def result_path(out: Path, shard: str) -> Path:
    """Where the result of a finished shard is kept until the build is complete."""
    return out / PARTIAL / f"{shard}.json"


def worker(connection: Connection) -> Callable[[Job], Iterator[Reading | ShardResult]]:
    """Factory for `processes.Worker`."""
    # webdataset imports torch if it can and does without if not; it is seconds and 250 MB per worker.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    blosc2.set_nthreads(1)
    return run


def run(job: Job) -> Iterator[Reading | ShardResult]:
    """Writes the shard; yields a `Reading` before each file and the `ShardResult` at the end."""
    quarantine: list[Quarantined] = []
    patients: set[str] = set()
    with ShardWriter(job.out / job.plan.name, job.codec) as writer:
        for number, file in enumerate(job.plan.files):
            yield Reading(number)
            try:
                scans = _read(file.path)
            except ReadError as error:
                quarantine.append(Quarantined(path=file.relative, reason=str(error)))
                continue
            for volume, scan in enumerate(scans):
                writer.add(scan, sample_key(job.key, file, volume), job.modality, file.patient)
            patients.add(file.patient)
    result = ShardResult(
        record=writer.record, patients=sorted(patients), files=len(job.plan.files), quarantine=quarantine
    )
    write_atomically(result_path(job.out, job.plan.name), to_json(result))
    yield result


def sample_key(key: bytes, file: SourceFile, volume: int) -> str:
    """Name of a sample: 20 hex digits that only the site's key connects to the file."""
    text = file.relative if volume == 0 else f"{file.relative}\0{volume}"
    return keyed_hash(key, "scan", text)[:20]


def _read(path: Path) -> list[Scan]:
    try:
        return read(path)
    except ReadError:
        raise
    except Exception as error:
        # A damaged header can take a parser anywhere; one file must not end a build of a million.
        raise ReadError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
