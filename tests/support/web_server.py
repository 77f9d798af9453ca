"""A web server on this machine that misbehaves as it is told, and files on it: a plugin of pytest (`conftest.py`)."""

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest


class File(NamedTuple):
    content: bytes
    sha256: str
    size: int


def file_of(content: bytes) -> File:
    return File(content, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def random_file() -> Callable[[int, int], File]:
    """A file of (seed, size in bytes)."""
    return lambda seed, size: file_of(random.Random(seed).randbytes(size))


Fault = Callable[["Handler", bytes], bool]  # answers in its own way, or returns False


class Server(ThreadingHTTPServer):
    """`files`: path -> content. `faults`: path -> what the next requests for it meet, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.always: Fault | None = None
        self.ranges = True
        self.etags: dict[str, str] = {}  # path -> ETag, which If-Range is held against
        self.seen: list[tuple[str, str, dict[str, str]]] = []  # path, query, headers
        self.sent: dict[str, int] = {}  # bytes of bodies, by path
        self.closing = threading.Event()
        self.guard = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def gets(self, path: str) -> int:
        with self.guard:
            return sum(1 for seen, _, _ in self.seen if seen == path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests go away on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path, _, query = self.path.lstrip("/").partition("?")
        with self.server.guard:
            self.server.seen.append((path, query, dict(self.headers)))
            waiting = self.server.faults.get(path)
            fault = waiting.pop(0) if waiting else self.server.always
        content = self.server.files.get(path)
        if fault is not None and fault(self, content or b""):
            return
        if content is None:
            self.answer(404, b"no such file")
        else:
            self.serve(content)

    def serve(self, content: bytes, stop_after: int | None = None) -> None:
        """The file or the range of it that was asked for; the connection is cut `stop_after` bytes."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers = {}
        status, start = 200, 0
        etag = self.server.etags.get(self.path.lstrip("/").partition("?")[0])
        if etag:
            headers["ETag"] = etag
        same = self.headers.get("If-Range", etag) == etag
        if wanted and self.server.ranges and same:
            start = int(wanted[1])
            if start >= len(content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(status, content[start:], headers, stop_after)
        return None

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, stop_after: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = body if stop_after is None else body[:stop_after]
        path = self.path.lstrip("/").partition("?")[0]
        with self.server.guard:  # before they go: who has them may look at once
            self.server.sent[path] = self.server.sent.get(path, 0) + len(cut)
        self.wfile.write(cut)
        if stop_after is not None:
            self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


def cut(after: int) -> Fault:
    """Sends that many bytes of the body, then closes the connection."""

    def fault(handler: Handler, content: bytes) -> bool:
        handler.serve(content, after)
        return True

    return fault


def status(code: int, **headers: str) -> Fault:
    def fault(handler: Handler, content: bytes) -> bool:
        handler.answer(code, b"sorry", {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def flipped(handler: Handler, content: bytes) -> bool:
    """One wrong bit in the middle."""
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    handler.serve(bytes(damaged))
    return True


def silent(after: int | None = None) -> Fault:
    """Says nothing at all, or nothing more after so many bytes, until the server is closed."""

    def fault(handler: Handler, content: bytes) -> bool:
        if after is not None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[:after])
            handler.wfile.flush()
        handler.server.closing.wait(60)
        handler.close_connection = True
        return True

    return fault


def slow(piece: int, seconds: float) -> Fault:
    """The whole file, a little at a time."""

    def fault(handler: Handler, content: bytes) -> bool:
        handler.send_response(200)
        if etag := handler.server.etags.get(handler.path.lstrip("/")):
            handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for start in range(0, len(content), piece):
            handler.wfile.write(content[start : start + piece])
            handler.wfile.flush()
            time.sleep(seconds)
        return True

    return fault


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield running
    running.closing.set()
    running.shutdown()
    running.server_close()


class Faults(NamedTuple):
    cut: Callable[..., Fault] = cut
    status: Callable[..., Fault] = status
    silent: Callable[..., Fault] = silent
    slow: Callable[..., Fault] = slow
    flipped: Fault = flipped


@pytest.fixture
def faults() -> Faults:
    return Faults()
