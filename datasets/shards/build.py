"""`scanforge data build`: folders of scans into a data set, in parallel, resumable, to the same bytes every time."""

import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from scanforge.configs.base import Config
from scanforge.configs.errors import UserError
from scanforge.datasets.identity import site_key
from scanforge.datasets.processes import Died, Worker, ready
from scanforge.datasets.shards.format import MANIFEST, VERSION, Manifest, to_json, write_atomically
from scanforge.datasets.shards.job import PARTIAL, Job, Quarantined, Reading, ShardResult
from scanforge.datasets.shards.resume import begin, finished_shards, locked, parameters_of
from scanforge.datasets.shards.sources import deal, find_sources
from scanforge.datasets.shards.writer import Codec

QUARANTINE = "quarantine.jsonl"
_ATTEMPTS = 3  # at a shard whose worker dies
_FACTORY = "scanforge.datasets.shards.job:worker"

# Those that a scheduler left to this process, where the system can tell.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Progress = Callable[[int, int], None]  # files done, files in all


class BuildOptions(Config):
    """How a data set is built. All but `workers` and `max_bad` are part of its content and kept in its manifest."""

    modality: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")] = "unknown"  # ct, mr, us, xr, ...: of every scan
    patient_regex: str | None = None  # see identity.patient_of
    key_file: Path | None = None  # see identity.site_key
    shard_mb: PositiveFloat = 128  # of source files per shard
    codec: Codec = "zstd"  # lz4hc: larger, decoded about three times faster
    workers: PositiveInt = _CORES
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.10  # share of files that may be quarantined


@dataclass(frozen=True)
class BuildSummary:
    """What a build did. `ignored` counts files without a reader by suffix."""

    out: Path
    files: int
    scans: int
    patients: int
    shards: int
    resumed_shards: int  # finished by an earlier, interrupted build
    quarantined: int
    ignored: dict[str, int]
    source_bytes: int
    bytes: int


def build(inputs: Sequence[Path], out: Path, options: BuildOptions, progress: Progress | None = None) -> BuildSummary:
    """Makes the data set `out` from the files and folders `inputs`; goes on where an interrupted build ended.

    Raises UserError for missing or empty inputs, an `out` that holds something else, other inputs or options than
    those the interrupted build had, or more than `max_bad` of the files in quarantine (`out`/quarantine.jsonl).
    """
    key = site_key(options.key_file)
    _keep_apart(inputs, out)
    files, ignored = find_sources(inputs, key, options.patient_regex)
    parameters = parameters_of(options.model_dump(), files, key)
    plans = deal(files, int(options.shard_mb * 2**20))
    with locked(out):
        complete = begin(out, parameters, files)
        done = finished_shards(out, plans)
        if complete is None:
            ledger = _Ledger(out, len(files), options.max_bad, done, progress)
            jobs = [Job(plan, out, key, options.modality, options.codec) for plan in plans if plan.name not in done]
            _run(jobs, options.workers, ledger)
            complete = _finish(out, parameters, ledger)
    return BuildSummary(
        out=out,
        files=len(files),
        scans=complete.scans,
        patients=complete.patients,
        shards=len(complete.shards),
        resumed_shards=len(done),
        quarantined=len((out / QUARANTINE).read_text(encoding="utf-8").splitlines()),
        ignored=ignored,
        source_bytes=sum(file.size for file in files),
        bytes=sum(shard.bytes for shard in complete.shards),
    )


def _keep_apart(inputs: Sequence[Path], out: Path) -> None:
    for given in inputs:
        if Path(given).is_dir() and out.resolve().is_relative_to(Path(given).resolve()):
            raise UserError(f"the output folder {out} lies in the input folder {given}; put it elsewhere")


class _Ledger:
    """What is known of a build so far: finished shards, and the file that each unfinished one is at."""

    def __init__(
        self, out: Path, total: int, max_bad: float, done: dict[str, ShardResult], progress: Progress | None
    ) -> None:
        self.out, self.total, self.max_bad, self.progress = out, total, max_bad, progress
        self.results = dict(done)
        self.underway: dict[str, int] = {}

    def finish(self, shard: str, result: ShardResult) -> None:
        """Books a finished shard; ends a build that can no longer stay under the ceiling."""
        self.results[shard] = result
        self.underway.pop(shard, None)
        self.check_ceiling()

    def tell(self) -> None:
        """Reports the progress in files."""
        if self.progress is not None:
            finished = sum(result.files for result in self.results.values())
            self.progress(finished + sum(self.underway.values()), self.total)

    def quarantine(self) -> list[Quarantined]:
        """Files that could not be used, by path."""
        entries = [entry for result in self.results.values() for entry in result.quarantine]
        return sorted(entries, key=lambda entry: entry.path)

    def write_quarantine(self) -> None:
        lines = [to_json(entry) + b"\n" for entry in self.quarantine()]
        write_atomically(self.out / QUARANTINE, b"".join(lines))

    def check_ceiling(self) -> None:
        bad = self.quarantine()
        if len(bad) <= self.max_bad * self.total and len(bad) < self.total:
            return
        self.write_quarantine()
        limit = f"more than --max-bad {self.max_bad:g} allows" if len(bad) < self.total else "so nothing is left"
        raise UserError(
            f"{len(bad)} of {self.total} files could not be read, {limit}; "
            f"reasons are in {self.out / QUARANTINE} (first: {bad[0].path}: {bad[0].reason})"
        )


def _run(jobs: Sequence[Job], count: int, ledger: _Ledger) -> None:
    waiting, deaths = deque(jobs), Counter[str]()
    busy: dict[Worker, Job] = {}
    idle: list[Worker] = []
    ledger.check_ceiling()
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                worker = idle.pop() if idle else Worker(_FACTORY)
                busy[worker] = waiting.popleft()
                worker.send(busy[worker])
            ledger.tell()
            for worker in ready(busy):
                name, reply = busy[worker].plan.name, worker.receive()
                if isinstance(reply, Reading):
                    ledger.underway[name] = reply.number
                elif isinstance(reply, Died):
                    deaths[name] += 1
                    waiting.append(_again(busy.pop(worker), deaths[name], ledger.underway.pop(name, 0), reply))
                else:
                    idle.append(worker)
                    del busy[worker]
                    ledger.finish(name, reply)
        ledger.tell()
    finally:
        for worker in [*busy, *idle]:
            worker.close()


def _again(job: Job, deaths: int, number: int, died: Died) -> Job:
    if deaths == _ATTEMPTS:
        raise UserError(
            f"the process that reads {job.plan.files[number].path} died {deaths} times (exit status {died.status}; "
            f"-9 is mostly lack of memory): take the file away or use fewer --workers"
        )
    return job


def _finish(out: Path, parameters: dict[str, Any], ledger: _Ledger) -> Manifest:
    ledger.write_quarantine()
    results = [ledger.results[name] for name in sorted(ledger.results)]
    shards = [result.record for result in results if result.record is not None]
    modalities = sum((Counter(shard.modalities) for shard in shards), Counter[str]())
    manifest = Manifest(
        version=VERSION,
        tool=f"scanforge {version('scanforge')}",
        parameters=parameters,
        scans=sum(shard.samples for shard in shards),
        patients=len({patient for result in results for patient in result.patients}),
        modalities=dict(sorted(modalities.items())),
        shards=shards,
    )
    write_atomically(out / MANIFEST, to_json(manifest, indent=1))
    shutil.rmtree(out / PARTIAL)
    return manifest
