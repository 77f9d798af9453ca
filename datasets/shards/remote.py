"""Bytes from a URL: one attempt, from a given position on. What goes wrong is told apart by whether to try again.

http and https go through requests (ranges, Retry-After, and one stream per file), every other scheme through its
fsspec file system. Nothing of a URL but scheme, host and path is ever shown: user names, passwords and signed queries
are not.
"""

import logging
import os
import re
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from scanforge.configs.errors import UserError

if TYPE_CHECKING:
    import requests

_PIECE = 1 << 18  # bytes of http that are handed on at a time
_BLOCK = 1 << 23  # bytes of a request to an object store
_AGAIN = {408, 425, 429}  # and 5xx: every other error status stays what it is
_SIGN_IN = {401, 403}
_idle: "deque[requests.Session]" = deque()  # connections are kept for the many small files
os.register_at_fork(after_in_child=_idle.clear)

Piece = tuple[int, bytes]  # where in the file, and what


class Unavailable(UserError):
    """A file of a data set that cannot be had from where it should lie."""


class Transient(Exception):
    """Trying again may help, not before `wait` seconds where the server asked for that."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def is_url(location: str) -> bool:
    """Whether `location` has a scheme, as in 's3://bucket/folder'."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def join(root: str, name: str) -> str:
    """URL of the file `name` in the folder `root`; a query (a signature of the folder) stays at the end."""
    parts = urlsplit(root)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


def shown(url: str) -> str:
    """`url` as it may be told: without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def pieces(url: str, offset: int, timeout: float) -> Generator[Piece]:
    """The bytes of `url` from `offset` on, or all of them where the server cannot start there.

    Transient or Unavailable where they cannot be had; UserError where the scheme cannot be read at all.
    """
    if urlsplit(url).scheme.lower() in ("http", "https"):
        yield from _http(url, offset, timeout)
    else:
        yield from _fsspec(url, offset)


class _NoQueries(logging.Filter):
    """urllib3 logs whole targets when someone asks for debugging."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s\"']*", "?...", record.getMessage()), None
        return True


_NO_QUERIES = _NoQueries()


def _session() -> "requests.Session":
    import requests

    if _idle:
        with suppress(IndexError):  # another thread was faster
            return _idle.popleft()
    logging.getLogger("urllib3.connectionpool").addFilter(_NO_QUERIES)
    return requests.Session()


def _http(url: str, offset: int, timeout: float) -> Generator[Piece]:
    import requests

    headers = {"Accept-Encoding": "identity"}  # sizes and ranges are of the file itself
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        session = _session()
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            position = _start(response, url, offset)
            if position is None:
                return
            for piece in response.iter_content(_PIECE):
                yield position, piece
                position += len(piece)
        _idle.append(session)
    except requests.exceptions.SSLError:
        raise Unavailable(f"{shown(url)}: the server's certificate cannot be verified") from None
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.TooManyRedirects):
        raise Unavailable(f"{shown(url)} cannot be opened: the address, or what it forwards to, is wrong") from None
    except requests.exceptions.Timeout:
        raise Transient(f"no byte for {timeout:g} s") from None
    except requests.exceptions.ChunkedEncodingError:
        raise Transient("the connection was cut") from None
    except (requests.exceptions.RequestException, OSError) as error:
        silent = "timed out" in str(error).lower()
        raise Transient(f"no byte for {timeout:g} s" if silent else "no connection to the server") from None


def _start(response: "requests.Response", url: str, offset: int) -> int | None:
    """Where the body of an answer to a request from `offset` on begins; None where the file ends before."""
    status = response.status_code
    if status == 416:
        return None
    if status >= 500 or status in _AGAIN:
        raise Transient(f"status {status}", _retry_after(response.headers.get("Retry-After", "")))
    if status not in (200, 206):
        raise Unavailable(f"{shown(url)} cannot be fetched: {_meaning(status)}")
    if status == 200:
        return 0
    given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if given is None or int(given[1]) != offset:
        raise Transient("the server sent another range than was asked for")
    return offset


def _meaning(status: int) -> str:
    if status in _SIGN_IN:
        return f"access is denied (status {status}); check the credentials, or whether a signed address has expired"
    return "there is no such file (status 404)" if status == 404 else f"status {status}"


def _retry_after(value: str) -> float:
    """Seconds; the header is a number of them or a date."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return 0.0


def _fsspec(url: str, offset: int) -> Generator[Piece]:
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = ": install 'scanforge[s3]'" if scheme in ("s3", "s3a") else ""
        reason = " ".join(str(error).split())
        raise UserError(f"{scheme}:// cannot be read on this machine ({reason}){extra}") from None
    try:
        with system.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as stream:
            stream.seek(offset)
            while piece := stream.read(_BLOCK):
                yield stream.tell() - len(piece), piece
    except GeneratorExit:
        raise
    except Exception as error:
        raise _judged(error, url) from None


def _judged(error: Exception, url: str) -> Exception:
    """A file system's error as one of ours. Its text is not repeated: it may hold the whole address."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return Unavailable(f"{shown(url)} cannot be fetched: there is no such file")
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return Unavailable(f"{shown(url)} cannot be fetched: access is denied ({type(error).__name__})")
    status = _status(error)
    if status is not None and 400 <= status < 500 and status not in _AGAIN:
        return Unavailable(f"{shown(url)} cannot be fetched: {_meaning(status)}")
    if isinstance(error, TypeError | AttributeError | NotImplementedError):
        return error  # a mistake in a program: trying again or hiding it would not help
    return Transient(type(error).__name__ if status is None else f"status {status}")


def _status(error: Any) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return None
