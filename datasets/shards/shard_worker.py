"""The part of a build that runs in a worker process: one shard from its sources."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import blosc2
from pydantic import BaseModel, ValidationError

from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.discovery.quarantine import Quarantined, QuarantineKind
from scanfoundry.datasets.discovery.sources import PlannedSource, ShardPlan, shown
from scanfoundry.datasets.identity import keyed_hash
from scanfoundry.datasets.labels import Labels
from scanfoundry.datasets.labels.attach import attach
from scanfoundry.datasets.readers import NothingToStore, ReadError, Scan, scans_of
from scanfoundry.datasets.readers.scratch import kept_below
from scanfoundry.datasets.shards.encode import Codec
from scanfoundry.datasets.shards.format import ShardRecord, to_json
from scanfoundry.datasets.shards.jpeg import keep_jpeg, single_channel
from scanfoundry.datasets.shards.thumbnail import thumbnails_path, write_thumbnails
from scanfoundry.datasets.shards.writer import ShardWriter, record_of

PARTIAL = ".partial"  # in the data set's folder: shards and what is known of them, until the build is complete
SURVEY = "survey"  # in the partial folder: what was read of DICOM headers


class ShardResult(BaseModel):
    """A finished shard; `record` is None where none of its sources could be read.

    `kept_jpegs` and `decoded_jpegs` count JPEG files that were to stay JPEG: those that did, and the others.
    """

    record: ShardRecord | None
    paths: list[str]  # of each scan in it, for telling people of duplicates
    sources: int
    quarantine: list[Quarantined]
    kept_jpegs: int = 0
    decoded_jpegs: int = 0


@dataclass(frozen=True)
class ShardTask:
    """One shard to write into the folder `out`.

    `keep_jpeg` is of the options; `join_equal`: colour whose channels are equal is stored as one channel, see
    `resume.joins_equal`.
    """

    plan: ShardPlan
    out: Path
    key: bytes
    modality: str
    codec: Codec
    deadly: dict[int, str] = field(default_factory=dict)  # sources that processes died of, and how
    scratch: str = ""  # folder below the partial one for what is converted for a moment
    keep_jpeg: bool = False
    join_equal: bool = True


@dataclass(frozen=True)
class SourceStarted:
    """Progress of a worker: it begins to read source `number` of its task."""

    number: int


def result_path(out: Path, shard: str) -> Path:
    """Where the result of a finished shard is kept until the build is complete."""
    return out / PARTIAL / f"{shard}.json"


def worker(connection: Connection) -> Callable[[ShardTask], Iterator[SourceStarted | ShardResult]]:
    """Factory for `processes.Worker`."""
    # webdataset imports torch if it can and does without if not; it is seconds and 250 MB per worker.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    blosc2.set_nthreads(1)
    return run


def run(task: ShardTask) -> Iterator[SourceStarted | ShardResult]:
    """Write one shard.

    Yields:
        A `SourceStarted` before each source, and the `ShardResult` at the end.
    """
    # What is converted for a moment lies there too: the next start clears it, should this one be killed.
    with (
        kept_below(task.out / PARTIAL / task.scratch),
        ShardWriter(task.out / PARTIAL / task.plan.name, task.codec) as writer,
    ):
        store = _SourceWriter(task, writer)
        for number, planned in enumerate(task.plan.sources):
            yield SourceStarted(number)
            store.source(planned, task.deadly.get(number))
    result = ShardResult(
        record=writer.record,
        paths=store.paths,
        sources=len(task.plan.sources),
        quarantine=store.quarantine,
        kept_jpegs=store.kept_jpegs,
        decoded_jpegs=store.decoded_jpegs,
    )
    write_thumbnails(thumbnails_path(task.out / PARTIAL, task.plan.name), writer.thumbnails.all())
    write_bytes(result_path(task.out, task.plan.name), to_json(result))
    yield result


class _SourceWriter:
    """Writes the scans of sources: of each source all of them, or none."""

    def __init__(self, task: ShardTask, writer: ShardWriter) -> None:
        self._task, self._writer = task, writer
        self.paths: list[str] = []
        self.quarantine: list[Quarantined] = []
        self.kept_jpegs = self.decoded_jpegs = 0

    def source(self, planned: PlannedSource, deadly: str | None) -> None:
        before, relative = len(self._writer), shown(planned.source.relative)
        paths: list[str] = []
        try:
            if deadly is not None:
                raise ReadError(deadly)
            for scan in _scans(planned):
                self._scan(planned, scan)
                paths.append(f"{relative} ({scan.part})" if scan.part else relative)
                del scan  # not beside the next one in memory
            if not paths:
                raise ReadError("holds no scan")
        except ReadError as error:
            self._writer.cut(before)
            kind: QuarantineKind = "skipped" if isinstance(error, NothingToStore) else "refused"
            files = [shown(name) for name in planned.source.files]
            reason = f"{error} ({len(files)} files)" if len(files) > 1 else str(error)
            self.quarantine.append(Quarantined(path=relative, kind=kind, reason=reason))
            self.quarantine += [Quarantined(path=f, kind=kind, reason=reason, first=relative) for f in files[1:]]
            return
        self.paths += paths

    def _scan(self, planned: PlannedSource, scan: Scan) -> None:
        key, patient, study = self._task.key, planned.patient, planned.study
        if scan.patient:
            entry = f"{planned.source.identity}\0{scan.patient}"
            patient, study = keyed_hash(key, "patient", entry), keyed_hash(key, "study", entry)
        if self._task.join_equal:
            scan = replace(scan, voxels=single_channel(scan.voxels))
        labels = self._labels(planned, scan)
        wanted = self._task.keep_jpeg and planned.source.kind == "image" and scan.lossy
        jpeg = keep_jpeg(planned.source.paths[0], scan.voxels) if wanted else None
        name = sample_key(key, planned, scan.part)
        try:
            self._writer.add(scan, name, self._task.modality, patient, labels, study, jpeg)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ReadError(f"cannot be stored ({place}: {first['msg']})") from error
        self.kept_jpegs += jpeg is not None
        self.decoded_jpegs += wanted and jpeg is None

    def _labels(self, planned: PlannedSource, scan: Scan) -> Labels:
        """The labels of the build where they fit, else the scan's own, else none."""
        own, ref = (lambda: scan.labels), planned.labels
        for find in [own] if ref is None else [lambda: attach(scan, ref), own]:
            try:
                labels = find()
                record_of(labels)
            except ReadError as error:
                self._mislabelled(planned, str(error))
            except ValidationError:
                self._mislabelled(planned, "labels: a text of more than 64 characters, or a number that is none")
            except Exception as error:  # of a damaged mask
                self._mislabelled(planned, f"mask: {_unforeseen(error)}")
            else:
                if labels.left_out:
                    self._mislabelled(planned, f"{labels.left_out} boxes are empty or lie outside of the scan")
                return labels
        return Labels()

    def _mislabelled(self, planned: PlannedSource, reason: str) -> None:
        self.quarantine.append(Quarantined(path=shown(planned.source.relative), kind="label", reason=reason))


def sample_key(key: bytes, planned: PlannedSource, part: str) -> str:
    """Name of a sample: 20 hex digits that only the site's key connects to the source."""
    return keyed_hash(key, "scan", f"{planned.source.identity}\0{part}" if part else planned.source.identity)[:20]


def _scans(planned: PlannedSource) -> Iterator[Scan]:
    try:
        yield from scans_of(planned.source)
    except ReadError:
        raise
    except Exception as error:
        # A damaged header can take a parser anywhere; one file must not end a build of a million.
        raise ReadError(_unforeseen(error)) from error


def _unforeseen(error: Exception) -> str:
    """What went wrong, without the error's own words: these may be the header's, or name the file."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {os.strerror(error.errno)}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
