"""How far a batch has come, in a file beside its outputs: the same command goes on where it was stopped."""

import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of
from scanfoundry.finetune.predict.tables import TableRow

PROGRESS = ".predictions.progress"
_SYNCED = 1.0  # seconds after which what was written is also put on the disk: a power cut loses no more

Stamp = tuple[int, int]  # bytes and newest time of an input's files


@dataclass(frozen=True)
class Done:
    """An input that was predicted: its rows of the table, and its outputs (relative to the folder) with checksums."""

    stamp: Stamp
    rows: list[TableRow]
    files: dict[str, str]


@dataclass
class BatchProgress:
    """The record of one batch. done: by name of the input; begun: how often an unfinished one was."""

    out: Path
    stream: IO[bytes]
    done: dict[str, Done] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)  # outputs of inputs that were not finished
    synced: float = 0.0

    def begin(self, name: str) -> None:
        """Work turns to an input; what an earlier start left of it is taken away."""
        for file in self.left.pop(name, []):
            (self.out / file).unlink(missing_ok=True)
        self._put({"begin": name})

    def intend(self, name: str, target: Path) -> None:
        """An output of the input is about to be written."""
        self._put({"of": name, "file": target.relative_to(self.out).as_posix()})

    def finish(self, name: str, stamp: Stamp, rows: Sequence[TableRow], files: Sequence[Path]) -> None:
        """An input is predicted, its outputs are whole."""
        sums = {path.relative_to(self.out).as_posix(): sha256_of(path) for path in files}
        self._put({"done": name, "stamp": stamp, "rows": rows, "files": sums})

    def verified(self, stamps: Mapping[str, Stamp]) -> dict[str, Done]:
        """What need not be done again: the input is as it was, and its outputs are those that were written."""
        kept = {}
        for name, done in self.done.items():
            if done.stamp == stamps.get(name) and all(_is(self.out / file, sum) for file, sum in done.files.items()):
                kept[name] = done
            else:
                self.left[name] = list(done.files)
        return kept

    def complete(self) -> None:
        """Everything is done, and the table says so: the record has served."""
        (self.out / PROGRESS).unlink(missing_ok=True)

    def _put(self, record: dict[str, Any]) -> None:
        self.stream.write(json.dumps(record).encode() + b"\n")
        self.stream.flush()
        if time.monotonic() > self.synced + _SYNCED:
            os.fsync(self.stream.fileno())
            self.synced = time.monotonic()


def is_under_way(out: Path) -> bool:
    """Whether a batch in the folder was not finished."""
    return (out / PROGRESS).is_file()


@contextmanager
def opened(out: Path, command: str) -> Iterator[BatchProgress]:
    """The record of the batch in `out`, made where there is none, locked against a second process.

    command: a digest of the model and the options. UserError where the folder holds the start of another one's batch,
    or another process works at it.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / PROGRESS
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666), "a+b") as stream:
        _lock(stream, out)
        stream.seek(0)
        progress = BatchProgress(out, stream)
        records = list(_records(stream, path))
        if records and records[0].get("command") != command:
            raise UserError(
                f"{out} holds the start of a batch with another model or other options: give the same again, choose "
                f"another --out, or delete {path}"
            )
        if not records:
            progress._put({"command": command})
        for record in records[1:]:
            _replay(record, progress)
        _clear(out, progress)
        yield progress


def _lock(stream: IO[bytes], out: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process predicts into {out}: wait for it, or choose another --out") from error
    except OSError:
        return  # a file system without locks


def _records(stream: IO[bytes], path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole; what a kill cut off in the middle of one is cut from the file."""
    whole = 0
    for line in stream:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not line.endswith(b"\n") or not isinstance(record, dict):
            os.truncate(path, whole)
            return
        whole += len(line)
        yield record


def _replay(record: dict[str, Any], progress: BatchProgress) -> None:
    name = str(record.get("begin") or record.get("of") or record.get("done"))
    if "begin" in record:
        progress.begun[name] = progress.begun.get(name, 0) + 1
        progress.done.pop(name, None)
        progress.left[name] = []
    elif "file" in record:
        progress.left.setdefault(name, []).append(record["file"])
    elif "done" in record:
        progress.begun.pop(name, None)
        progress.left.pop(name, None)
        progress.done[name] = Done(tuple(record["stamp"]), record["rows"], record["files"])


def _clear(out: Path, progress: BatchProgress) -> None:
    """What a killed process left half-written."""
    for folder in out.glob(".part-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (file for files in progress.left.values() for file in files):
        target = out / file
        for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
            part.unlink(missing_ok=True)


def _is(path: Path, checksum: str) -> bool:
    try:
        return sha256_of(path) == checksum
    except OSError:
        return False
