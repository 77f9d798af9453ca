"""The bytes of a cache folder: room is made before a file is written, by deleting what was not used for longest."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import IO

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.locks import exclusive, lies_at, lock, open_lock, pause

_NAME = re.compile(r"([0-9a-f]{64})(?:\.(?P<size>\d+)\.part|\.(?P<lock>lock))?")
_STALE = 24 * 3600  # seconds after which what a dead process left behind is deleted, full or not
_PATIENCE = 60.0  # seconds to wait for the few operations that others do under the folder's lock
_POLL = 0.2
GB = 10**9


class NoRoom(UserError):
    """Everything in the cache is in use at the moment."""


@dataclass
class _CacheEntry:
    """What the folder holds of one content."""

    used: float = 0.0  # when, s since the epoch
    data: int = 0  # bytes
    parts: dict[str, int] = field(default_factory=dict)  # file name: bytes that it will have

    @property
    def bytes(self) -> int:
        return self.data + sum(self.parts.values())


def part_name(sha256: str, size: int) -> str:
    """Name of a file on its way. It says how large it will be, so that others leave room for it."""
    return f"{sha256}.{size}.part"


class Space:
    """The room in `folder`, at most `bound` bytes for the files of all processes together."""

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder, self.bound = folder, bound

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with exclusive(self.folder / "lock", _PATIENCE):
            yield

    def reserve(self, sha256: str, size: int, what: str, patience: float, stop: Event | None) -> Path:
        """Makes room for `size` bytes and returns the part file, which may hold the first of them already.

        The caller holds the lock of `sha256`. Waits up to `patience` seconds for files in use to be released; then,
        and where the file is larger than the whole cache, UserError.
        """
        if size > self.bound:
            raise UserError(
                f"{what} has {size / GB:.3g} GB and the cache {self.folder} may hold {self.bound / GB:.3g}: "
                "raise cache.gb, or build smaller shards"
            )
        part, until = self.folder / part_name(sha256, size), time.monotonic() + patience
        while True:
            with self._alone():
                if self._make_room(sha256, size):
                    part.touch()
                    return part
            if time.monotonic() > until:
                raise NoRoom(
                    f"no room for {what} ({size / GB:.3g} GB): the cache {self.folder} is full of files in use; "
                    f"raise cache.gb ({self.bound / GB:.3g})"
                )
            pause(_POLL, stop)

    def publish(self, part: Path, data: Path) -> None:
        """Renames a finished part file."""
        with self._alone():  # a listing during the rename may show neither name
            os.replace(part, data)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make_room(self, sha256: str, size: int) -> bool:
        entries = self._entries()
        entries.pop(sha256, None)
        missing = sum(entry.bytes for entry in entries.values()) + size - self.bound
        for other, entry in sorted(entries.items(), key=lambda item: item[1].used):
            stale = entry.data == 0 and time.time() - entry.used > _STALE
            if missing > 0 or stale:
                missing -= self._drop(other, entry)
        return missing <= 0

    def _entries(self) -> dict[str, _CacheEntry]:
        entries: dict[str, _CacheEntry] = {}
        with os.scandir(self.folder) as files:
            for file in files:
                name = _NAME.fullmatch(file.name)
                if name is None:
                    continue
                with suppress(FileNotFoundError):
                    status = file.stat()
                    entry = entries.setdefault(name[1], _CacheEntry())
                    entry.used = max(entry.used, status.st_mtime)
                    if name["size"]:
                        entry.parts[file.name] = int(name["size"])
                    elif not name["lock"]:
                        entry.data = status.st_size
        return entries

    def _drop(self, sha256: str, entry: _CacheEntry) -> int:
        """Deletes all files of a content and returns their bytes; 0 where it is in use or on its way."""
        path = self.folder / f"{sha256}.lock"
        with open_lock(path) as work:
            if not lock(work) or not lies_at(work, path):
                return 0
            if not self._drop_data(self.folder / sha256):
                return 0
            for name in entry.parts:
                (self.folder / name).unlink(missing_ok=True)
            path.unlink()
        return entry.bytes

    def _drop_data(self, path: Path) -> bool:
        try:
            data: IO[bytes] = open(path, "r+b", buffering=0)  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return True
        with data:
            if not lock(data):
                return False
            path.unlink()
        return True
