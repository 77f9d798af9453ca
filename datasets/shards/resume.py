"""How an interrupted build is continued: its parameters, the shards that it finished, and its lock."""

import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import blosc2

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.sources import PlannedSource
from scanfoundry.datasets.discovery.survey import write_shared
from scanfoundry.datasets.identity import keyed_hash, site_fingerprint
from scanfoundry.datasets.readers.scratch import clear
from scanfoundry.datasets.shards.build_plan import PLAN, BuildPlan, Part
from scanfoundry.datasets.shards.build_progress import read_result
from scanfoundry.datasets.shards.finalize import final_path
from scanfoundry.datasets.shards.format import MANIFEST, SOURCES, Manifest, index_name, parse
from scanfoundry.datasets.shards.parent import Parent
from scanfoundry.datasets.shards.shard_worker import PARTIAL, SURVEY, ShardResult, result_path
from scanfoundry.datasets.shards.source_table import source_rows
from scanfoundry.datasets.shards.table import to_bytes
from scanfoundry.datasets.shards.thumbnail import thumbnails_path
from scanfoundry.datasets.storage.locks import lies_at, open_lock
from scanfoundry.datasets.storage.locks import lock as take

BUILD = "build.json"
_EQUAL, _JPEG = "equal_channels", "keep_jpeg"  # parameters that older versions did not know
_LOCK, _PART_LOCK = ".lock", ".part-"
T = TypeVar("T")


def parameters_of(
    options: dict[str, Any], sources: Sequence[PlannedSource], key: bytes, join_equal: bool = True
) -> dict[str, Any]:
    """Everything that the bytes of a data set depend on, for its manifest. Nothing in it identifies the site.

    What older versions did not know stands there only where it differs from what they did.
    """
    rule = options["patient_regex"]
    listing = "\n".join(f"{each.source.identity}\0{each.source.size}" for each in sources)
    labels = "\n".join(f"{each.order}\0{each.labels}" for each in sources if each.labels is not None)
    return {
        "modality": options["modality"],
        "codec": options["codec"],
        "shard_mb": options["shard_mb"],
        "frames": options["frames"],
        "patients_by": "header or path" if rule is None else f"pattern {keyed_hash(key, 'pattern', rule)}",
        "site": site_fingerprint(key),
        "sources": len(sources),
        "sources_hash": keyed_hash(key, "sources", listing),
        "labels_hash": keyed_hash(key, "labels", labels),
        "scanfoundry": version("scanfoundry"),
        "blosc2": blosc2.__version__,
        **({_EQUAL: "one channel"} if join_equal else {}),
        **(_of_jpeg() if options[_JPEG] else {}),
    }


def _of_jpeg() -> dict[str, Any]:
    """The decoders of reader and worker decide which JPEG files are kept, and zlib how an index is compressed."""
    decoders = {name: version(name) for name in ("pillow", "imagecodecs")}
    return {_JPEG: True, **decoders, "zlib": zlib.ZLIB_RUNTIME_VERSION}


def joins_equal(out: Path) -> bool:
    """Whether colour whose three channels are equal is stored as one channel in the folder `out`.

    Versions before did not do so. What they began or built goes on as it was: the same picture would be another scan,
    and no duplicate of the one that is stored.
    """
    if (out / MANIFEST).exists():
        before = parse(Manifest, (out / MANIFEST).read_bytes(), str(out / MANIFEST)).parameters
    elif (out / PARTIAL / BUILD).exists():
        before = json.loads((out / PARTIAL / BUILD).read_text(encoding="utf-8"))
    else:
        return True
    return _EQUAL in before


def check_free(out: Path) -> None:
    """UserError where the folder `out` holds something other than a data set, or what a build has begun."""
    try:
        # Locks alone are of a build that was killed early.
        fresh = not out.exists() or all(path.name.startswith((_LOCK, _PART_LOCK)) for path in out.iterdir())
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    if not fresh and not (out / MANIFEST).exists() and not (out / PARTIAL).exists():
        raise UserError(f"{out} is not empty and no data set; give a new folder")


@contextmanager
def locked(out: Path, part: Part | None = None) -> Iterator[None]:
    """Hold the folder `out` until the context ends: for one build, or for a part of one beside other parts.

    Raises:
        UserError: another build holds it, it cannot be written, or it holds something other than a data set.
    """
    check_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open_lock(out / _LOCK)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    with lock:
        if not take(lock, shared=part is not None) or not lies_at(lock, out / _LOCK):
            raise UserError(f"another build is writing to {out}; wait for it")
        if part is None:
            try:
                yield
            finally:
                for path in [*out.glob(f"{_PART_LOCK}*"), out / _LOCK]:
                    path.unlink(missing_ok=True)
            return
        with open_lock(out / f"{_PART_LOCK}{part.number}-of-{part.count}") as own:
            if not take(own):
                raise UserError(f"another process is building part {part} of {out}; wait for it")
            yield
            if (out / MANIFEST).exists():  # nothing is written any more; else other parts may hold the locks
                for path in (Path(own.name), out / _LOCK):
                    path.unlink(missing_ok=True)


def begin(
    out: Path, parameters: dict[str, Any], sources: Sequence[PlannedSource], plan: BuildPlan, part: Part | None = None
) -> Manifest | None:
    """Prepare the folder `out` for a build or a part of one, or for the rest of it.

    Returns:
        The manifest where the data set is complete already, else None.

    Raises:
        UserError: the build was begun with other parameters or inputs; the text says what differs.
    """
    if (out / MANIFEST).exists():
        manifest = parse(Manifest, (out / MANIFEST).read_bytes(), str(out / MANIFEST))
        same(out, manifest.parameters, parameters)
        if part is None:
            shutil.rmtree(out / PARTIAL, ignore_errors=True)  # of a build killed while it closed: it names paths
        return manifest
    _prepare(out, parameters, sources, plan, part)
    return None


def clear_finished(out: Path, parent: Parent) -> None:
    """Remove what a build left that was killed when its data set was complete already, but for the survey."""
    begun = out / PARTIAL / BUILD
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")).get("parent") != parent.data.manifest_hash:
        for path in [each for each in (out / PARTIAL).iterdir() if each.name != SURVEY]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def begin_append(
    out: Path, parameters: dict[str, Any], sources: Sequence[PlannedSource], plan: BuildPlan, parent: Parent
) -> None:
    """Prepare the folder `out` for scans that are appended to the data set in it, or for the rest of them.

    Raises:
        UserError: an append of other scans was begun and not finished.
    """
    clear_finished(out, parent)
    begun = out / PARTIAL / BUILD
    before = json.loads(begun.read_text(encoding="utf-8")) if begun.exists() else parameters
    if _differing(before, parameters):
        raise UserError(
            f"an append of other scans to {out}, or with other options, was begun and not finished: repeat that one, "
            f"or delete {out / PARTIAL}"
        )
    _prepare(out, parameters | {"parent": parent.data.manifest_hash}, sources, plan, None)


def _prepare(
    out: Path, parameters: dict[str, Any], sources: Sequence[PlannedSource], plan: BuildPlan, part: Part | None
) -> None:
    """The partial folder of a build: what it was begun with, and nothing of a killed process."""
    begun = {**parameters, "modified": str(max(each.source.modified for each in sources))}
    partial = out / PARTIAL
    (partial / (part.folder if part else "")).mkdir(parents=True, exist_ok=True)
    if part is None:
        clear_killed(out)
    else:
        clear(partial / part.folder)
        _clear_drafts([out, partial], set(part_of(plan.names, part)))
    if not (partial / BUILD).exists():
        write_shared(partial / BUILD, json.dumps(begun, indent=1).encode())
    same(out, json.loads((partial / BUILD).read_text(encoding="utf-8")), begun)
    if not (partial / SOURCES).exists():
        write_shared(partial / SOURCES, to_bytes(source_rows(sources)))
    if not (partial / PLAN).exists():
        write_shared(partial / PLAN, plan.model_dump_json().encode())


def clear_killed(out: Path) -> None:
    """Remove what killed processes have half written, where no other process builds in the folder `out`."""
    clear(out / PARTIAL)
    _clear_drafts([out, out / PARTIAL], None)


def _clear_drafts(folders: Sequence[Path], own: set[str] | None) -> None:
    """Remove what killed processes have half written: all of it, or that of some shards."""
    for folder in folders:
        for draft in [*folder.glob(".*.tmp"), *folder.glob(".*.part")]:
            if own is None or draft.name[1:].partition(".")[0] + ".tar" in own:
                draft.unlink()


def part_of(names: Sequence[T], part: Part | None) -> Sequence[T]:
    """What of a build's shards is of one part."""
    return names if part is None else names[part.number - 1 :: part.count]


_MEANING = {
    "sources": "the number of input scans",
    "sources_hash": "the input files",
    "labels_hash": "--labels or --masks",
    "frames": "--frames",
    "modified": "the input files (one was changed since)",
    "site": "the site key",
    "patients_by": "--patient-regex",
    "shard_mb": "--shard-mb",
    "modality": "--modality",
    "codec": "--codec",
    _JPEG: "--keep-jpeg",
    _EQUAL: "what becomes of colour with equal channels (by another version)",
}


def same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError where a build was begun with another value of a parameter than now; the text names it."""
    for name in _differing(before, now):
        shown = f": {before.get(name)} then, {now.get(name)} now" if "_" not in name and name != "site" else ""
        raise UserError(
            f"{out} was begun with another value of {_MEANING.get(name, name)}{shown}; "
            f"give a new folder or delete that one"
        )


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The parameters of now that had another value before."""
    return [name for name, value in {_JPEG: None, _EQUAL: None, **now}.items() if before.get(name) != value]


def finished_shards(out: Path, names: Iterable[str]) -> Iterator[tuple[str, ShardResult]]:
    """The shards that an interrupted build completed, with their results."""
    for name in names:
        if not result_path(out, name).exists() or not thumbnails_path(out / PARTIAL, name).exists():
            continue
        result = read_result(out, name)
        record = result.record
        if record is None or final_path(out, name).exists() or _whole(out / PARTIAL / record.name, record.bytes):
            yield name, result


def _whole(shard: Path, size: int) -> bool:
    index = shard.with_name(index_name(shard.name))
    return index.exists() and shard.exists() and shard.stat().st_size == size
