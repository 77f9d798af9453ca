"""Bytes from any URL: one attempt, from a given position on. What goes wrong is told apart by whether to try again.

http and https go through requests (ranges, Retry-After, one stream per file), every other scheme through its fsspec
file system.
"""

from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.address import Transient, Unavailable, refusal, shown
from scanfoundry.datasets.storage.web import Piece, Version, web_pieces

_BLOCK = 1 << 23  # bytes of a request to an object store


def pieces(url: str, offset: int, timeout: float, version: Version | None = None) -> Generator[Piece]:
    """The bytes of `url` from `offset` on, or all of them where the server cannot start there.

    `version` is that of the bytes before `offset`, see `Version`; other schemes than http do not know it.
    Transient or Unavailable where they cannot be had; UserError where the scheme cannot be read at all.
    """
    if urlsplit(url).scheme.lower() in ("http", "https"):
        yield from web_pieces(url, offset, timeout, version)
    else:
        yield from _fsspec(url, offset)


def _fsspec(url: str, offset: int) -> Generator[Piece]:
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = ': pip install "scanfoundry[s3]"' if scheme in ("s3", "s3a") else ""
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
    if status is not None and status >= 400 and (refused := refusal(status, url)) is not None:
        return refused
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
