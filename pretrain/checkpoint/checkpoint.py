"""Checkpoints that are whole or not there: written to a temporary folder, sealed, renamed (`seal.py`).

run/checkpoints/step-00000500/
    rank-00000.safetensors ... state.json   see state_files.py
    complete.json    step, position in the stream, and size and crc32 of every file: the seal, written last
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isal import isal_zlib

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.plan import Position
from scanfoundry.datasets.sampling.segments import Segment, segments_of
from scanfoundry.pretrain.checkpoint.seal import FORMAT, SEAL, folders
from scanfoundry.pretrain.distributed.world import ALONE, World, gather_objects


def newest(root: Path, warn: Callable[[str], None] | None, world: World) -> Path | None:
    """The newest complete checkpoint under `root`; broken ones are passed over with a word to `warn`, if it is given.

    Every rank calls it and reads a share of the files. Returns None if there was never one; raises UserError if there
    are some and all are broken.
    """
    found = gather_objects(folders(root), world)[0]
    for folder in reversed(found):
        problems = [problem for problem in gather_objects(examine(folder, world), world) if problem is not None]
        if not problems:
            return folder
        if warn is not None:
            warn(f"checkpoint {folder} is broken ({problems[0]}); trying the one before")
    if found:
        raise UserError(f"every checkpoint in {root} is broken; delete that folder to start from the beginning")
    return None


def clean(root: Path) -> None:
    """Remove temporary folders that a killed writer left."""
    for leftover in root.glob(".tmp-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def position(folder: Path, seed: int) -> tuple[int, Position]:
    """Optimiser steps taken when this checkpoint was written, and the position of the sampling plan."""
    seal = json.loads((folder / SEAL).read_text())
    return seal["step"], Position.of(seal["stream"], seed)


def verified_step(folder: Path) -> int:
    """The step of a checkpoint whose files are all whole.

    Raises:
        UserError: one is not.
    """
    problem = examine(folder, ALONE)
    if problem is not None:
        raise UserError(f"checkpoint {folder} is broken ({problem}); use an earlier one")
    return int(json.loads((folder / SEAL).read_text())["step"])


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """For verifying a checkpoint and then reading it while a run may still write or delete: what is read is what was
    verified.

    Raises:
        UserError: the folder or a file in it was replaced, changed or removed before the end.
    """
    before = _states(folder)
    problem = UserError(f"checkpoint {folder} was replaced or removed while it was read; run the command again")
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _states(folder) != before:
            raise problem from error
        raise
    if _states(folder) != before:
        raise problem


def _states(folder: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    with suppress(FileNotFoundError):
        for path in (folder, *folder.iterdir()):
            status = path.stat()
            found[path.name] = (status.st_ino, status.st_size if path != folder else 0, status.st_mtime_ns)
    return found


def segments(folder: Path) -> list[Segment]:
    """Which manifests the run of this checkpoint has drawn from, from which step on."""
    return segments_of(json.loads((folder / SEAL).read_text())["stream"])


def examine(folder: Path, world: World) -> str | None:
    """What is wrong with this rank's share of a checkpoint, or None.

    Every sealed file must be there, of its size and crc32.
    """
    try:
        seal = json.loads((folder / SEAL).read_text())
        if seal["format"] != FORMAT:
            return f"format {seal['format']}, this scanfoundry reads {FORMAT}"
        for name, expected in sorted(seal["files"].items())[world.rank :: world.size]:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} of {expected['bytes']} bytes"
            if _crc32(path) != expected["crc32"]:
                return f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{SEAL} cannot be read"
    return None


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            value = isal_zlib.crc32(chunk, value)
    return value
