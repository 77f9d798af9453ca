"""A bounded folder of verified files, named by the sha256 of their content, shared by any number of processes.

Per content: the file itself, locked shared by whoever uses it; `<sha256>.lock`, locked exclusively by whoever fetches,
verifies or deletes it, and last modified when it was last used; `<sha256>.<size>.part` while it is on its way.
The lock file says which state of the file (inode, size, times) was verified since which boot: a file that was written
to in any way, or that outlived a reboot, is hashed again when it is next opened.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import IO, Annotated, BinaryIO

from pydantic import Field, PositiveInt

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of
from scanfoundry.datasets.storage.fetch import LONGEST_PAUSE, write_all
from scanfoundry.datasets.storage.locks import exclusive, lies_at, lock
from scanfoundry.datasets.storage.space import GB, Space, part_name
from scanfoundry.datasets.storage.verified import is_verified, set_verified, touch

_HASHING = 120.0  # seconds for the largest file
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Fill = Callable[[BinaryIO], None]


class CacheConfig(Config):
    """Where shards behind a URL are kept on this machine, and how patiently they are fetched."""

    folder: Path = Path("~/.cache/scanfoundry/shards")
    gb: Annotated[float, Field(gt=0)] = 50.0  # 10^9 bytes; all processes that use the folder keep to it together
    timeout_s: Annotated[float, Field(gt=0)] = 60.0  # without a byte from the server
    attempts: PositiveInt = 5  # in a row without progress

    @property
    def ahead_bytes(self) -> int:
        """The bytes that may lie in the cache before they are needed. The rest is for what is in use."""
        return int(self.gb * GB / 2)


class HeldFile:
    """A verified file that is not deleted while this object is open."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self._stream = path, stream

    def close(self) -> None:
        """Allows the file to be deleted."""
        self._stream.close()


class Cache:
    """A folder of verified files.

    Methods raise UserError where the folder cannot be used, has no room, or its disk is full.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = config.folder.expanduser()
        self._timeout = config.timeout_s
        self._patience = _HASHING + config.attempts * (config.timeout_s + LONGEST_PAUSE)
        self._space = Space(self.folder, int(config.gb * GB))

    def hold(
        self, sha256: str, size: int, fill: Fill, what: str, stop: Event | None = None, wait: float | None = None
    ) -> HeldFile:
        """A file of some content, locked against deletion.

        Others who ask for the same content meanwhile wait for it.

        Args:
            sha256: of the content, hexadecimal.
            size: of the content, in bytes.
            fill: called where the file is missing or damaged, with a part file that may hold what an earlier attempt
                fetched. It leaves exactly the content there, or raises.
            what: the file is, for messages.
            stop: ends a wait.
            wait: seconds to wait for room while everything in the cache is in use; None: the timeout of the
                configuration.
        """
        with self._usable(f"{what} ({size / GB:.3g} GB)"):
            return self._present(sha256, size) or self._made(sha256, size, fill, what, stop, wait)

    def small(self, sha256: str, download: Callable[[], bytes], what: str) -> bytes:
        """A small content, from the folder or else from a download.

        Args:
            sha256: of the content. What the folder holds is hashed at each read.
            download: called where the folder lacks it. Its answer is trusted.
            what: the file is, for messages.
        """
        with self._usable(what):
            if (content := self._content(sha256)) is not None:
                return content
            with exclusive(self.folder / f"{sha256}.lock", self._patience) as record:
                if (content := self._content(sha256)) is not None:
                    return content
                content, data = download(), self.folder / sha256
                data.unlink(missing_ok=True)
                part = self._space.reserve(sha256, len(content), what, self._timeout, None)
                self._filled(part, data, lambda stream: _write(stream, content), record).close()
                return content

    @contextmanager
    def _usable(self, what: str) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if error.errno in _FULL:
                raise UserError(
                    f"the disk of the cache {self.folder} is full ({reason}) and {what} does not fit; free some, or "
                    "set cache.folder"
                ) from error
            raise UserError(f"the cache {self.folder} cannot be used ({reason}); set cache.folder") from error

    def _made(self, sha256: str, size: int, fill: Fill, what: str, stop: Event | None, wait: float | None) -> HeldFile:
        """The file after it was verified or fetched, or after another process did so."""
        part = self.folder / part_name(sha256, size)
        with exclusive(self.folder / f"{sha256}.lock", self._patience, stop, lambda: _progress(part)) as record:
            held = self._present(sha256, size) or self._verified(sha256, size, record)
            if held is not None:
                return held
            data = self.folder / sha256
            data.unlink(missing_ok=True)
            self._space.reserve(sha256, size, what, self._timeout if wait is None else wait, stop)
            return self._filled(part, data, fill, record)

    def _verified(self, sha256: str, size: int, record: IO[bytes]) -> HeldFile | None:
        """The file if it is there and its content is right."""
        path = self.folder / sha256
        try:
            stream = open(path, "rb", buffering=0)  # noqa: SIM115 (it is what keeps the file)
        except FileNotFoundError:
            return None
        lock(stream, shared=True, block=True)
        if os.fstat(stream.fileno()).st_size == size and sha256_of(stream) == sha256:
            set_verified(record, stream)
            return HeldFile(path, stream)
        stream.close()
        return None

    def _filled(self, part: Path, data: Path, fill: Fill, record: IO[bytes]) -> HeldFile:
        stream = open(part, "r+b", buffering=0)  # noqa: SIM115 (it is what keeps the file)
        try:
            fill(stream)
            os.fsync(stream.fileno())
            lock(stream, shared=True, block=True)
            self._space.publish(part, data)
            set_verified(record, stream)
            touch(self.folder / f"{data.name}.lock")
        except BaseException as error:
            empty = os.fstat(stream.fileno()).st_size == 0
            stream.close()
            if empty or (isinstance(error, OSError) and error.errno in _FULL):
                part.unlink(missing_ok=True)
            raise
        return HeldFile(data, stream)

    def _present(self, sha256: str, size: int) -> HeldFile | None:
        """The file if it is there, whole, and has not changed since it was verified."""
        path, record = self.folder / sha256, self.folder / f"{sha256}.lock"
        try:
            stream = open(path, "rb", buffering=0)  # noqa: SIM115 (it is what keeps the file)
        except FileNotFoundError:
            return None
        lock(stream, shared=True, block=True)
        with suppress(FileNotFoundError):
            whole = lies_at(stream, path) and os.fstat(stream.fileno()).st_size == size
            if whole and is_verified(record.read_bytes(), stream):
                touch(record)
                return HeldFile(path, stream)
        stream.close()
        return None

    def _content(self, sha256: str) -> bytes | None:
        try:
            content = (self.folder / sha256).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            return None
        with suppress(FileNotFoundError):
            touch(self.folder / f"{sha256}.lock")
        return content


def _write(stream: BinaryIO, content: bytes) -> None:
    stream.seek(0)
    stream.truncate()
    write_all(stream, content)


def _progress(part: Path) -> tuple[int, int] | None:
    try:
        status = part.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns
