"""Checkpoints that are whole or not there: written to a temporary folder, sealed, renamed.

run/checkpoints/step-00000500/
    state/...        what DeepSpeed wrote
    complete.json    step, and size and crc32 of every file: the seal, written last
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scanforge.configs.errors import UserError
from scanforge.datasets.plan import Position
from scanforge.pretrain.distributed import World, all_ranks_agree, barrier

SEAL = "complete.json"


def save(
    root: Path, step: int, stream: dict[str, Any], write: Callable[[Path], None], world: World, keep_last: int
) -> Path:
    """Let every rank `write` into a temporary folder, then seal and rename it; keep the newest `keep_last`.

    `stream` is the position of the sampling plan and its sources' manifests, kept in the seal for people to read.

    Raises UserError on every rank if any could not write (disk full, no permission); older checkpoints stay.
    """
    final, temporary = root / f"step-{step:08d}", root / f".tmp-step-{step:08d}"
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier(world)
    problem = ""
    try:
        write(temporary)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        problem = str(error)
    if all_ranks_agree(not problem, world) and world.is_main:
        try:
            _seal(temporary, step, stream)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            _sync_folder(root)
        except OSError as error:
            problem = str(error)
    if not all_ranks_agree(not problem, world):
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = " ".join(problem.split()) or "another rank failed"
        raise UserError(f"cannot write checkpoint {final}: {reason}; earlier checkpoints are untouched")
    if world.is_main:
        for old in _folders(root)[:-keep_last]:
            shutil.rmtree(old, ignore_errors=True)
    barrier(world)
    return final


def newest(root: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint under `root`; broken ones are passed over with a word to `warn`.

    Returns None if there was never one; raises UserError if there are some and all are broken.
    """
    folders = _folders(root)
    for folder in reversed(folders):
        problem = examine(folder)
        if problem is None:
            return folder
        warn(f"checkpoint {folder} is broken ({problem}); trying the one before")
    if folders:
        raise UserError(f"every checkpoint in {root} is broken; delete that folder to start from the beginning")
    return None


def clean(root: Path) -> None:
    """Remove what a killed writer left."""
    for leftover in root.glob(".tmp-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def position(folder: Path, seed: int) -> tuple[int, Position]:
    """Optimiser steps taken when this checkpoint was written, and the position of the sampling plan."""
    seal = json.loads((folder / SEAL).read_text())
    return seal["step"], Position.of(seal["stream"], seed)


def refuse_other_data(folder: Path, manifests: dict[str, str]) -> None:
    """UserError if a source's manifest (sha256 by source name) is not the one that the checkpoint was trained on."""
    before = json.loads((folder / SEAL).read_text())["stream"]["manifests"]
    for name, digest in manifests.items():
        if before.get(name) != digest:
            raise UserError(
                f"the shards of source '{name}' are not those that {folder} was trained on; "
                "restore them, or choose a new run_dir"
            )


def examine(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every sealed file must be there, of its size and crc32."""
    try:
        seal = json.loads((folder / SEAL).read_text())
        for name, expected in seal["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} of {expected['bytes']} bytes"
            if _crc32(path) != expected["crc32"]:
                return f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SEAL} cannot be read"
    return None


def _seal(folder: Path, step: int, stream: dict[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
    with open(folder / SEAL, "w") as handle:
        json.dump({"step": step, "stream": stream, "files": files}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("step-*") if p.is_dir())


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
