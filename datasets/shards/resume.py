"""How an interrupted build is continued: its parameters, the shards that it finished, and its lock."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import blosc2

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.discovery.sources import PlannedSource, ShardPlan
from scanfoundry.datasets.identity import keyed_hash, site_fingerprint
from scanfoundry.datasets.readers.scratch import clear
from scanfoundry.datasets.shards.finalize import final_path
from scanfoundry.datasets.shards.format import MANIFEST, Manifest, index_name, parse
from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardResult, result_path
from scanfoundry.datasets.shards.thumbnail import thumbnails_path
from scanfoundry.datasets.storage.locks import lock as taken
from scanfoundry.datasets.storage.locks import open_lock

_BUILD = "build.json"
_LOCK = ".lock"


def parameters_of(options: dict[str, Any], sources: Sequence[PlannedSource], key: bytes) -> dict[str, Any]:
    """Everything that the bytes of a data set depend on, for its manifest. Nothing in it identifies the site."""
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
    }


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder `out` for one build until the context ends.

    Raises:
        UserError: another build holds it, it cannot be written, or it holds something other than a data set.
    """
    try:
        fresh = not out.exists() or all(path.name == _LOCK for path in out.iterdir())  # of one killed early
        if not fresh and not (out / MANIFEST).exists() and not (out / PARTIAL).exists():
            raise UserError(f"{out} is not empty and no data set; give a new folder")
        out.mkdir(parents=True, exist_ok=True)
        lock = open_lock(out / _LOCK)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    with lock:
        if not taken(lock):
            raise UserError(f"another build is writing to {out}; wait for it")
        try:
            yield
        finally:
            (out / _LOCK).unlink()


def begin(out: Path, parameters: dict[str, Any], sources: Sequence[PlannedSource]) -> Manifest | None:
    """Prepare the folder `out` for a build, or for the rest of one.

    Returns:
        The manifest where the data set is complete already, else None.

    Raises:
        UserError: the build was begun with other parameters or inputs; the text says what differs.
    """
    if (out / MANIFEST).exists():
        manifest = parse(Manifest, (out / MANIFEST).read_bytes(), str(out / MANIFEST))
        _same(out, manifest.parameters, parameters)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)  # of a build killed while it closed: it names paths
        return manifest
    begun = {**parameters, "modified": str(max(each.source.modified for each in sources))}
    record = out / PARTIAL / _BUILD
    if record.exists():
        _same(out, json.loads(record.read_text(encoding="utf-8")), begun)
    (out / PARTIAL).mkdir(exist_ok=True)
    clear(out / PARTIAL)
    for folder in (out, out / PARTIAL):
        for draft in [*folder.glob(".*.tmp"), *folder.glob(".*.part")]:
            draft.unlink()
    write_bytes(record, json.dumps(begun, indent=1).encode())
    return None


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
}


def _same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            shown = f": {before.get(name)} then, {value} now" if "_" not in name and name != "site" else ""
            raise UserError(
                f"{out} was begun with another value of {_MEANING.get(name, name)}{shown}; "
                f"give a new folder or delete that one"
            )


def finished_shards(out: Path, plans: Sequence[ShardPlan]) -> dict[str, ShardResult]:
    """Results of the shards that an interrupted build completed, by name."""
    done: dict[str, ShardResult] = {}
    for plan in plans:
        path = result_path(out, plan.name)
        if not path.exists() or not thumbnails_path(out / PARTIAL, plan.name).exists():
            continue
        result = parse(ShardResult, path.read_bytes(), str(path))
        record = result.record
        if record is None or final_path(out, plan.name).exists() or _whole(out / PARTIAL / record.name, record.bytes):
            done[plan.name] = result
    return done


def _whole(shard: Path, size: int) -> bool:
    index = shard.with_name(index_name(shard.name))
    return index.exists() and shard.exists() and shard.stat().st_size == size
