"""`scanfoundry data build`: folders of scans into a data set, in parallel, resumable, to the same bytes every time."""

import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined, count, read_quarantine, write_quarantine
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.discovery.sources import PlannedSource, assign_shards, find_sources
from scanfoundry.datasets.identity import site_key
from scanfoundry.datasets.labels.label_index import LabelIndex, open_labels
from scanfoundry.datasets.labels.tables.table import Columns
from scanfoundry.datasets.modality import Modality
from scanfoundry.datasets.processes import Progress, Worker, WorkerDied, ready
from scanfoundry.datasets.readers import SUFFIXES, plain_suffix
from scanfoundry.datasets.readers.frames import find_frame_folders
from scanfoundry.datasets.shards.build_progress import BuildProgress
from scanfoundry.datasets.shards.encode import Codec
from scanfoundry.datasets.shards.finalize import finalize, write_manifest
from scanfoundry.datasets.shards.format import NEAR_DUPLICATES, Manifest
from scanfoundry.datasets.shards.resume import begin, finished_shards, locked, parameters_of
from scanfoundry.datasets.shards.shard_worker import ShardTask, SourceStarted
from scanfoundry.datasets.shards.sizes import SHARD_MB

_ATTEMPTS = 2  # at a source whose worker dies
_FACTORY = "scanfoundry.datasets.shards.shard_worker:worker"

# Those that a scheduler left to this process, where the system can tell.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BuildOptions(Config):
    """How a data set is built.

    All options but `workers` and `max_bad` decide on its content. Its manifest records them, the key as a fingerprint.
    `labels` and `masks` are what `labels.label_index.open_labels` takes.
    """

    modality: Modality = "unknown"  # of scans whose file does not say
    labels: list[Path] = []  # CSV, COCO, VOC, dataset.json: see labels.label_index
    label_columns: list[str] = []  # of CSV files, to store beside those called class, label, ...: see labels.choice
    allow_identifying: bool = False  # store such a column even where it tells a person
    masks: list[Path] = []  # folders of masks named like the scans, or patterns
    boxes_from_masks: bool = False  # one per connected component
    frames: bool = False  # folders of numbered images are videos
    patient_regex: str | None = None  # see identity.patient_of
    key_file: Path | None = None  # see identity.site_key
    shard_mb: PositiveFloat = SHARD_MB  # of source files per shard
    codec: Codec = "zstd"  # lz4hc: larger, decoded about three times faster
    workers: PositiveInt = _CORES
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.10  # share of sources that may be refused


@dataclass(frozen=True)
class BuildSummary:
    """What a build did.

    Attributes:
        sources: files, series and videos that were read or tried.
        resumed_shards: finished by an earlier build that was interrupted.
        quarantined: lines of quarantine.jsonl by kind.
        ignored: files that are no scan, by suffix.
        notes: what a person should know of the labels.
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


def build(inputs: Sequence[Path], out: Path, options: BuildOptions, progress: Progress | None = None) -> BuildSummary:
    """Build a data set from files and folders, or continue a build that was interrupted.

    The same inputs, options and site key give the same bytes, whatever the number of workers or interruptions.

    Args:
        inputs: files, folders, or patterns with '*'.
        out: folder of the data set. It is new, empty, or holds the interrupted build.
        options: what to store and how.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        Counts of what was stored and of what was left out.

    Raises:
        UserError: an input is missing or holds no scan, `out` holds something else or was begun with other inputs or
            options, or more than `options.max_bad` of the sources were refused (see quarantine.jsonl in `out`).
    """
    key = site_key(options.key_file)
    _check_apart(inputs, out)
    report = progress or (lambda what, done, total: None)
    columns = Columns(asked=tuple(options.label_columns), insist=options.allow_identifying)
    label_index = open_labels(options.labels, options.masks, options.boxes_from_masks, columns, images=inputs)
    sources, none = find_sources(
        inputs,
        key,
        options.patient_regex,
        label_index,
        lambda root, files: find_dicom(root, files, options.workers, report),
        find_frame_folders if options.frames else None,
    )
    _check_any(inputs, sources, none)
    unused = len(label_index.unused([each.source.relative for each in sources]))
    parameters = parameters_of(options.model_dump(), sources, key)
    plans = assign_shards(sources, int(options.shard_mb * 2**20))
    with locked(out):
        complete = begin(out, parameters, sources)
        done = finished_shards(out, plans)
        if complete is None:
            build_progress = BuildProgress(out, len(sources), options.max_bad, done, none, report)
            tasks = [
                ShardTask(plan, out, key, options.modality, options.codec) for plan in plans if plan.name not in done
            ]
            _run_tasks(tasks, options.workers, build_progress)
            complete, duplicates = finalize(out, parameters, build_progress.finished(), options.codec)
            write_quarantine(out, [*build_progress.quarantine(), *duplicates])
            write_manifest(out, complete)
    return _summary_of(out, sources, complete, resumed=len(done), label_index=label_index, unused=unused)


def _summary_of(
    out: Path, sources: Sequence[PlannedSource], complete: Manifest, resumed: int, label_index: LabelIndex, unused: int
) -> BuildSummary:
    lines = read_quarantine(out)
    return BuildSummary(
        out=out,
        sources=len(sources),
        scans=complete.scans,
        patients=complete.patients,
        shards=len(complete.shards),
        resumed_shards=resumed,
        quarantined=count([line for line in lines if line.kind != "skipped"]),
        ignored=_by_suffix([line.path for line in lines if line.kind == "skipped"]),
        warnings=complete.warnings,
        unused_labels=unused,
        near_duplicates=0 if complete.near_duplicates is None else complete.near_duplicates.scans,
        notes=[
            *label_index.notes,
            *(f"{number} {reason}" for reason, number in label_index.left_out.items()),
            *_notes_on_greys(complete),
            *_notes_on_near_duplicates(out, complete),
        ],
        source_bytes=sum(each.source.size for each in sources),
        bytes=sum(shard.bytes for shard in complete.shards),
    )


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


def _by_suffix(paths: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(plain_suffix(path) for path in paths).items()))


def _check_any(inputs: Sequence[Path], sources: Sequence[object], none: Sequence[Quarantined]) -> None:
    if sources:
        return
    counts = _by_suffix([line.path for line in none])
    seen = ", ".join(f"{number} {suffix}" for suffix, number in counts.items()) or "nothing"
    raise UserError(
        f"no scans in {', '.join(map(str, inputs))} (found {seen}); read are DICOM and {', '.join(SUFFIXES)}"
    )


def _check_apart(inputs: Sequence[Path], out: Path) -> None:
    for given in inputs:
        if Path(given).is_dir() and out.resolve().is_relative_to(Path(given).resolve()):
            raise UserError(f"the output folder {out} lies in the input folder {given}; put it elsewhere")


def _run_tasks(tasks: Sequence[ShardTask], count: int, build_progress: BuildProgress) -> None:
    pending, deaths = deque(tasks), Counter[tuple[str, int]]()
    busy: dict[Worker, ShardTask] = {}
    idle: list[Worker] = []
    build_progress.check_ceiling()
    try:
        while pending or busy:
            while pending and len(busy) < count:
                worker = idle.pop() if idle else Worker(_FACTORY)
                busy[worker] = pending.popleft()
                worker.send(busy[worker])
            build_progress.report()
            for worker in ready(busy):
                name, reply = busy[worker].plan.name, worker.receive()
                if isinstance(reply, SourceStarted):
                    build_progress.underway[name] = reply.number
                elif isinstance(reply, WorkerDied):
                    number = build_progress.underway.pop(name, 0)
                    deaths[name, number] += 1
                    pending.append(_retried(busy.pop(worker), number, deaths[name, number], reply))
                else:
                    idle.append(worker)
                    del busy[worker]
                    build_progress.add(name, reply)
        build_progress.report()
    finally:
        for worker in [*busy, *idle]:
            worker.close()


def _retried(task: ShardTask, number: int, deaths: int, died: WorkerDied) -> ShardTask:
    """The task once more; without the source that it dies of."""
    if deaths < _ATTEMPTS:
        return task
    reason = f"the process that read it died {deaths} times (exit status {died.status}; -9 is mostly lack of memory)"
    return replace(task, deadly={**task.deadly, number: reason})
