"""Where the files of a data set lie: a folder of this machine, or a URL behind a cache."""

import hashlib
import io
import threading
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.address import Unavailable, is_url, join, shown
from scanfoundry.datasets.storage.cache import Cache, CacheConfig, HeldFile
from scanfoundry.datasets.storage.fetch import Fetch

__all__ = ["CacheConfig", "FolderStore", "RemoteStore", "Store", "Unavailable"]


class Store(ABC):
    """The files of one data set. A store can be pickled; each process keeps locks of its own."""

    remote: bool

    @staticmethod
    def of(location: str | Path, cache: CacheConfig) -> "Store":
        """The store at a folder, or at a URL that fsspec reads. Nothing is opened yet.

        Args:
            location: path or URL.
            cache: where files behind a URL are kept.

        Raises:
            UserError: the URL is a chain ('simplecache::s3://...').
        """
        text = str(location)
        if "::" in text and is_url(text.rpartition("::")[2]):
            raise UserError(f"{text.partition('::')[0]}::...: chained addresses are not read; give the data set's own")
        if not is_url(text):
            return FolderStore(Path(location))
        if urlsplit(text).scheme.lower() in ("file", "local"):
            return FolderStore(Path(unquote(urlsplit(text).path)))
        return RemoteStore(text, cache)

    @abstractmethod
    def local(self, name: str, sha256: str, size: int) -> Path:
        """A file on a disk of this machine, held there until `release` or `close`.

        Args:
            name: of the file.
            sha256: of its content, hexadecimal.
            size: in bytes.

        Raises:
            Unavailable: the file cannot be fetched from its URL.
            UserError: the cache cannot take it.
        """

    @abstractmethod
    def small(self, name: str, sha256: str | None = None) -> bytes:
        """The content of a manifest, a table or an index, at most 1 GiB.

        Args:
            name: of the file.
            sha256: of its content, where known.

        Raises:
            Unavailable: the file cannot be had, or has another content.
        """

    def stream(self, name: str, sha256: str) -> BinaryIO:
        """What `small` reads, to be read piece by piece. The caller compares the sum of what is read.

        Args:
            name: of the file.
            sha256: of its content.

        Raises:
            Unavailable: the file cannot be had.
        """
        return io.BytesIO(self.small(name, sha256))

    @abstractmethod
    def shown(self, name: str) -> str:
        """The name of a file in a message. Of a URL it holds neither user, password nor query."""

    @abstractmethod
    def fetch(self, name: str, sha256: str, size: int, stop: Event | None = None) -> None:
        """What `local` does ahead of use: the file is there afterwards, but not held. `locks.Stopped` by `stop`."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Takes back one `local` of `name`: when all are, the cache may delete the file."""

    @abstractmethod
    def close(self) -> None:
        """Releases everything."""


class FolderStore(Store):
    """A folder: its files stay where they are. `local` does not look whether there is one."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def local(self, name: str, sha256: str, size: int) -> Path:
        return self.folder / name

    def small(self, name: str, sha256: str | None = None) -> bytes:
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise Unavailable(f"{self.shown(name)} cannot be read: {error.strerror}; copy or build it again") from error
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise Unavailable(
                f"{self.shown(name)} is damaged (its sha256 is not the manifest's); copy or build it again"
            )
        return content

    def stream(self, name: str, sha256: str) -> BinaryIO:
        try:
            return open(self.folder / name, "rb")
        except OSError as error:
            raise Unavailable(f"{self.shown(name)} cannot be read: {error.strerror}; copy or build it again") from error

    def shown(self, name: str) -> str:
        return str(self.folder / name)

    def fetch(self, name: str, sha256: str, size: int, stop: Event | None = None) -> None:
        """Nothing to do."""

    def release(self, name: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


class RemoteStore(Store):
    """A URL. Whole files are fetched into the cache of `config`, and verified."""

    remote = True

    def __init__(self, url: str, config: CacheConfig) -> None:
        self._url, self._config = url, config
        self._cache = Cache(config)
        self._held: dict[str, HeldFile] = {}
        self._uses: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self._url, self._config)

    def __repr__(self) -> str:
        return f"RemoteStore({shown(self._url)})"

    def local(self, name: str, sha256: str, size: int) -> Path:
        held = self._hold(name, sha256, size, None, None)
        with self._lock:
            earlier = self._held.get(name)
            self._held[name] = held
            self._uses[name] += 1
        if earlier is not None:
            earlier.close()
        return held.path

    def small(self, name: str, sha256: str | None = None) -> bytes:
        if sha256 is not None:
            return self._cache.small(sha256, lambda: self._download(name, sha256), self.shown(name))
        content = self._download(name, None)
        return self._cache.small(hashlib.sha256(content).hexdigest(), lambda: content, self.shown(name))

    def _download(self, name: str, sha256: str | None) -> bytes:
        stream = io.BytesIO()
        self._fetch(name, sha256, None, None).into(stream)
        return stream.getvalue()

    def shown(self, name: str) -> str:
        return shown(join(self._url, name))

    def fetch(self, name: str, sha256: str, size: int, stop: Event | None = None) -> None:
        self._hold(name, sha256, size, stop, 0.0).close()

    def _hold(self, name: str, sha256: str, size: int, stop: Event | None, wait: float | None) -> HeldFile:
        fetch = self._fetch(name, sha256, size, stop)
        return self._cache.hold(sha256, size, fetch.into, self.shown(name), stop, wait)

    def _fetch(self, name: str, sha256: str | None, size: int | None, stop: Event | None) -> Fetch:
        config = self._config
        return Fetch(join(self._url, name), config.timeout_s, config.attempts, sha256, size, stop)

    def release(self, name: str) -> None:
        with self._lock:
            self._uses[name] -= 1
            if self._uses[name] > 0:
                return
            del self._uses[name]
            held = self._held.pop(name, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        with self._lock:
            everything = list(self._held.values())
            self._held.clear()
            self._uses.clear()
        for held in everything:
            held.close()
