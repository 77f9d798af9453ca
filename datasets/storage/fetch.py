"""A file from a URL into a local one: attempts, pauses between them, resuming, and the check of what came."""

import hashlib
import logging
import queue
import random
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import BinaryIO

from scanfoundry.datasets.storage.address import Away, Changed, Transient, Unavailable, shown
from scanfoundry.datasets.storage.locks import Stopped, pause
from scanfoundry.datasets.storage.remote import pieces
from scanfoundry.datasets.storage.web import Piece, Version

_PAUSE = 0.5, 30.0  # seconds: the first, the longest
LONGEST_PAUSE = 120.0  # that a server may ask for
_PROGRESS = 1 << 20  # bytes further than ever before: an attempt that got there was not in vain
_READ = 1 << 20
_LIMIT = 1 << 30  # bytes of a file whose size is not known: of a data set, it is read into memory
_LISTEN = 0.1  # seconds within which a stop is noticed
_GRACE = 2.0  # seconds by which a client's own timeout may come first: it says more

_log = logging.getLogger(__name__)
_random = random.Random()  # of our own: jitter must not touch the state that a run is reproduced from


def write_all(stream: BinaryIO, content: bytes) -> None:
    """Writes to an unbuffered file, which may take a part only."""
    left = memoryview(content)
    while left:
        left = left[stream.write(left) :]


class _Copy:
    """What has come so far: the stream, how far it reaches, and its hash."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest, self.position = hashlib.sha256(), 0
        stream.seek(0)
        while piece := stream.read(_READ):
            self.digest.update(piece)
            self.position += len(piece)

    def restart(self) -> None:
        self.digest, self.position = hashlib.sha256(), 0
        self._stream.seek(0)
        self._stream.truncate()

    def add(self, start: int, piece: bytes) -> None:
        if start != self.position:  # the server cannot start in the middle
            self.restart()
        write_all(self._stream, piece)
        self.digest.update(piece)
        self.position += len(piece)


@dataclass(frozen=True)
class Fetch:
    """How to get one file.

    Attributes:
        sha256, size: of the file, where they are known; the size in bytes.
        version: keeps two states of the file on the server apart. Bytes that were there before are continued only where
            the server says that it still has that state.
        progress: called with the number of bytes that have come. What it raises ends the fetch.
    """

    url: str = field(repr=False)
    timeout: float  # s without a byte
    attempts: int  # in a row without progress
    sha256: str | None = None
    size: int | None = None
    stop: threading.Event | None = None
    limit: int = _LIMIT  # bytes, where the size is not known
    version: Version | None = None
    progress: Callable[[int], None] | None = None

    def into(self, stream: BinaryIO) -> None:
        """Completes `stream`, which may hold the first bytes already; Unavailable when the attempts are used up.

        OSError comes from `stream` alone.

        Raises:
            Stopped: `stop` was set.
        """
        self.copied(stream)

    def copied(self, stream: BinaryIO) -> str:
        """`into`, which gives the sha256 of what is there now."""
        copy = _Copy(stream)
        failures, furthest = 0, copy.position
        while True:
            wait = 0.0
            try:
                reason = self._attempt(copy)
                if reason is None:
                    return copy.digest.hexdigest()
            except Transient as error:
                if isinstance(error, Changed):
                    copy.restart()
                reason, wait = str(error), error.wait
            failures = 0 if copy.position >= furthest + _PROGRESS else failures + 1
            furthest = max(furthest, copy.position)
            if failures >= self.attempts:
                raise Away(f"{shown(self.url)} cannot be fetched in {self.attempts} attempts: {reason}")
            wait = max(wait, min(_PAUSE[1], _PAUSE[0] * 2 ** max(0, failures - 1)) * _random.uniform(0.5, 1.5))
            wait = min(wait, LONGEST_PAUSE)
            _log.info("%s: %s; again in %.1f s", shown(self.url), reason, wait)
            pause(wait, self.stop)

    def _attempt(self, copy: _Copy) -> str | None:
        """None when the file is complete, else why it is not; what is wrong is not kept."""
        most = self.limit if self.size is None else self.size
        if self.version is not None and self.version.strict and not self.version.validator:
            copy.restart()  # nobody can say whether what is here is of the file that is there
        if self.size is None or copy.position < self.size:
            with closing(watched(self.url, copy.position, self.timeout, self.stop, self.version)) as arriving:
                for start, piece in arriving:
                    copy.add(start, piece)
                    if self.progress is not None:
                        self.progress(copy.position)
                    if copy.position > most:
                        break
        if self.size is None and copy.position > most:
            raise Unavailable(f"{shown(self.url)} is larger than the {most} bytes that are allowed")
        if self.size is not None and copy.position < self.size:
            return f"it ends after {copy.position} of {self.size} bytes"
        if copy.position > most:
            reason = f"it is larger than the {most} bytes that it should have"
        elif self.sha256 is not None and copy.digest.hexdigest() != self.sha256:
            reason = "its content is not what the manifest says (sha256)"
        else:
            return None
        copy.restart()
        return reason


def watched(
    url: str, offset: int, timeout: float, stop: threading.Event | None, version: Version | None = None
) -> Generator[Piece]:
    """`pieces`, read by a thread of its own, so that no file system's client can keep the caller waiting.

    Transient after `timeout` seconds without a piece, Stopped soon after `stop` is set; the thread ends with its read.
    """
    arrived: queue.Queue[Piece | Exception | None] = queue.Queue(maxsize=4)
    gone = threading.Event()
    arguments = (url, offset, timeout, version, arrived, gone)
    threading.Thread(target=_read, args=arguments, daemon=True, name="scanfoundry-fetch").start()
    waited = 0.0
    try:
        while True:
            if stop is not None and stop.is_set():
                raise Stopped
            try:
                item = arrived.get(timeout=_LISTEN)
            except queue.Empty:
                waited += _LISTEN
                if waited > timeout + _GRACE:
                    raise Transient(f"no byte for {timeout:g} s") from None
                continue
            waited = 0.0
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        gone.set()
        with suppress(queue.Empty):  # so that the thread does not wait for room
            while True:
                arrived.get_nowait()


def _read(
    url: str,
    offset: int,
    timeout: float,
    version: Version | None,
    arrived: "queue.Queue[Piece | Exception | None]",
    gone: threading.Event,
) -> None:
    last: Exception | None = None
    try:
        with closing(pieces(url, offset, timeout, version)) as source:
            for piece in source:
                arrived.put(piece)
                if gone.is_set():
                    return
    except Exception as error:
        last = error
    arrived.put(last)
