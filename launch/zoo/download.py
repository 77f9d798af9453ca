"""The file of a catalogue entry, from a URL, into a folder: continued where it was cut, and verified."""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.address import Unavailable, shown
from scanfoundry.datasets.storage.fetch import Fetch
from scanfoundry.datasets.storage.web import Version
from scanfoundry.launch.zoo.catalogue import Download, human
from scanfoundry.launch.zoo.verifying import VerifiedFile, check_free_space, verify_against

logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Progress = Callable[[int, int | None], None]  # called with the bytes that are here, and those of the whole file


def no_progress(done: int, total: int | None) -> None:
    """For whoever shows no progress."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a server is waited for."""

    timeout: float = 60.0  # s without a byte
    attempts: int = 5  # in a row without progress


@dataclass
class _Watched:
    """What the fetch tells after each piece: kept for a later run, and held against what is expected."""

    url: str
    record: Path
    version: Version
    expected: Download
    progress: Progress
    _noted: tuple[str, int | None] | None = field(default=None)

    def __call__(self, position: int) -> None:
        now = (self.version.validator, self.version.size)
        if now != self._noted:
            self._noted = now
            self._judge(position)
            self.record.write_text(json.dumps({"url": _hashed(self.url), **asdict(self.version)}))
        self.progress(position, self.version.size)

    def _judge(self, position: int) -> None:
        size, known = self.version.size, self.expected.bytes
        if size is not None and known is not None and size != known:
            raise Unavailable(f"{shown(self.url)} has {size} bytes, the catalogue's file has {known}")
        if size is not None:
            check_free_space(self.record.parent, size - position + size)


def download(
    expected: Download, urls: list[str], folder: Path, patience: RetryPolicy, progress: Progress = no_progress
) -> VerifiedFile:
    """Download and verify a file; what an earlier run got of it is continued.

    Args:
        expected: name, size and checksums of the file, as far as they are known.
        urls: addresses, tried in this order.
        folder: where the file, and its part until it is whole, are written.
        patience: how long a server is waited for.
        progress: called with the bytes that are here and those of the whole file.

    Raises:
        UserError: none of the addresses has it (`Unavailable`), what came is not what is expected, or the disk is full.
    """
    refused: list[Unavailable] = []
    for url in urls:
        try:
            return _from_one(expected, url, folder, patience, progress)
        except Unavailable as error:
            refused.append(error)
            if len(urls) > len(refused):
                logger.warning("%s; trying the next address", error)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise UserError(
                f"the disk of {folder} is full; free some and run the same command again: it goes on where it was"
            ) from error
    last = Unavailable("; ".join(str(error) for error in refused))
    last.status = refused[-1].status
    raise last


def _from_one(expected: Download, url: str, folder: Path, patience: RetryPolicy, progress: Progress) -> VerifiedFile:
    part, seen = folder / f"{expected.file}.part", list[str]()
    wrong = folder / f"{expected.file}.wrong"
    while True:
        size = human(expected.bytes) if expected.bytes else expected.about or "size unknown"
        logger.info("fetching %s (%s)", shown(url), size)
        digest = _fetched(expected, url, part, patience, progress)
        reason, verified = verify_against(expected, part, digest)
        if not reason:
            done = part.rename(folder / expected.file)
            wrong.unlink(missing_ok=True)
            _record(part).unlink(missing_ok=True)
            return VerifiedFile(done, shown(url), done.stat().st_size, digest, verified)
        part.replace(wrong)
        _record(part).unlink(missing_ok=True)
        if len(seen) == 1:
            raise UserError(_explained(reason, url, wrong, digest in seen))
        seen.append(digest)
        logger.warning("%s; fetching it once more from the start", reason)


def _explained(reason: str, url: str, wrong: Path, same: bool) -> str:
    if same:
        advice = (
            "the server gives the same file each time, so it has another one than the catalogue: if you trust it, "
            "install it with --from and --sha256 and that sum; else get it from elsewhere with --from"
        )
    else:
        advice = "it came differently each time: something on the way damages it; use another network, or --from"
    return f"{shown(url)}: {reason}; what came is kept as {wrong} and nothing was installed; {advice}"


def _fetched(expected: Download, url: str, part: Path, patience: RetryPolicy, progress: Progress) -> str:
    """Completes the part file; its sha256."""
    version = _known_version(url, part, strict=expected.sha256 is None)
    watched = _Watched(url, _record(part), version, expected, progress)
    part.touch()
    if expected.bytes is not None:
        check_free_space(part.parent, 2 * expected.bytes - part.stat().st_size)
    limit = shutil.disk_usage(part.parent).free + part.stat().st_size
    with open(part, "r+b", buffering=0) as stream:
        fetch = Fetch(
            url,
            patience.timeout,
            patience.attempts,
            size=expected.bytes,
            limit=limit,
            version=version,
            progress=watched,
        )
        return fetch.copied(stream)


def _known_version(url: str, part: Path, strict: bool) -> Version:
    """What the server said of the file when the part was begun; nothing where it was another address, or is lost."""
    try:
        noted = json.loads(_record(part).read_text())
        if noted.pop("url") == _hashed(url):
            return Version(str(noted["validator"]), noted["size"], strict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return Version(strict=strict)


def _record(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _hashed(url: str) -> str:
    """Addresses may hold secrets: what is kept can only be compared."""
    return hashlib.sha256(url.encode()).hexdigest()
