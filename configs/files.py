"""Files that are written whole: a reader, or a process that starts after a kill, sees the old content or the new."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from scanfoundry.configs.errors import UserError


@contextmanager
def opened_once(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a file for reading, together with a path that stays that of this very file.

    What is computed from the stream (a checksum) is then true of what is read by the path, whatever takes the file's
    name meanwhile.

    Args:
        path: of the file.

    Raises:
        UserError: the file was written to before the context ended.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as stream:
        before = _state(stream)
        descriptor = Path(f"/dev/fd/{stream.fileno()}")
        yield stream, descriptor if descriptor.exists() else path
        if _state(stream) != before:
            raise UserError(f"{path} was written to while it was read; try again when it is complete")


def _state(stream: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def write_whole(path: Path, write: Callable[[Path], object], durable: bool = False) -> None:
    """Let `write` fill a file beside `path`, then rename it into place.

    Nothing is written through a link: a link of either name is replaced, and what it leads to stays.

    Args:
        path: of the file.
        write: is given the path to write to.
        durable: wait until the content is on the disk, so that a power cut too leaves the old content or the new.
    """

    def fill(part: Path) -> Path:
        write(part)
        if durable:
            _sync(part)
        return path

    replace_whole(path, fill)


def replace_whole(path: Path, write: Callable[[Path], Path]) -> Path:
    """Let `write` fill a file beside `path`, then rename it to the path that `write` returned.

    Returns:
        That path.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make_anew(part)
        final = write(part)
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)
    return final


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, so that a rename outlives a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_anew(path: Path) -> None:
    """An empty file at `path`, in place of whatever has the name.

    Raises:
        OSError: `path` is a folder.
    """
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON that every reader accepts. An undefined number must be None.

    Raises:
        ValueError: a number is nan or infinite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, durably."""
    write_whole(path, lambda part: part.write_bytes(content), durable=True)


def sha256_of(file: Path | IO[bytes]) -> str:
    """The SHA-256 of a file, hexadecimal.

    Args:
        file: its path, or the open file, which is read from its start.
    """
    with nullcontext(file) if not isinstance(file, Path) else open(file, "rb") as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
