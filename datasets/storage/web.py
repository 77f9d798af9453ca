"""Bytes over http and https: one attempt, from a given position on. requests is imported late: it is slow to start."""

import logging
import os
import re
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING

from scanfoundry.datasets.storage.address import Changed, Transient, Unavailable, refusal, shown

if TYPE_CHECKING:
    import requests

_PIECE = 1 << 18  # bytes that are handed on at a time
_idle: "deque[requests.Session]" = deque()  # connections are kept for the many small files
os.register_at_fork(after_in_child=_idle.clear)

Piece = tuple[int, bytes]  # where in the file, and what


@dataclass
class Version:
    """Which state of a file the bytes so far are of: every answer fills it in, and the next request asks for it.

    Without it, two states of a file could be joined into one. `strict`, for files whose checksum nobody knows: where
    the server does not say which state it has, nothing is continued.
    """

    validator: str = ""  # a strong ETag, else the date of the last change: what If-Range takes; "" where none was sent
    size: int | None = None  # bytes of the whole file
    strict: bool = True


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


def web_pieces(url: str, offset: int, timeout: float, version: Version | None = None) -> Generator[Piece]:
    """The bytes of `url` from `offset` on, or all of them where the server cannot start there.

    `timeout`: seconds without a byte. Transient or Unavailable where they cannot be had, Changed where they would not
    continue those of `version`.
    """
    import requests

    headers = {"Accept-Encoding": "identity"}  # sizes and ranges are of the file itself
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if version is not None and version.validator:
            headers["If-Range"] = version.validator
    try:
        session = _session()
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            position = _start(response, url, offset)
            if version is not None:
                _check(response, position, offset, version)
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
    if status not in (200, 206):
        raise refusal(status, url) or Transient(
            f"status {status}", _retry_after(response.headers.get("Retry-After", ""))
        )
    if status == 200:
        return 0
    given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if given is None or int(given[1]) != offset:
        raise Transient("the server sent another range than was asked for")
    return offset


def _check(response: "requests.Response", position: int | None, offset: int, version: Version) -> None:
    """Fill in `version`; Changed where the bytes to come are not of the same state of the file as those before."""
    total = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        size = int(length) if length.isdigit() else None
    else:
        size = int(total[1]) if total else version.size
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    same_size = size is None or version.size in (None, size)
    if position is None:  # nothing behind `offset`: whole, or a shorter file now
        if size != offset:
            raise Changed("the file on the server is shorter than before")
    elif position and (version.validator not in ("", validator) or not same_size):
        raise Changed("the file on the server has changed")
    else:
        version.validator, version.size = validator, size


def _retry_after(value: str) -> float:
    """Seconds; the header is a number of them or a date."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return 0.0
