"""Is a file what it should be, and is there room for it?"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import opened_once, sha256_of
from scanfoundry.launch.zoo.catalogue import Download, human


@dataclass(frozen=True)
class VerifiedFile:
    """A file that is here, and what is known of it."""

    path: Path
    origin: str  # the address, or 'a file of this machine'
    bytes: int
    sha256: str
    verified: str  # by what; '' where there was nothing to hold it against


def verify_against(expected: Download, path: Path, digest: str) -> tuple[str, str]:
    """Compare a file with what is known of it: its size, then sha256, or the first digits of its md5.

    Args:
        expected: what the catalogue or the user says of the file.
        path: the file.
        digest: its sha256.

    Returns:
        What is wrong with it ('' if nothing), and what it was verified by ('' if nothing was known).
    """
    size = path.stat().st_size
    if expected.bytes is not None and size != expected.bytes:
        return f"it has {size} bytes, expected are {expected.bytes}", ""
    if expected.sha256 is not None:
        wrong = f"its sha256 is {digest}, expected is {expected.sha256}"
        return ("", "sha256") if digest == expected.sha256 else (wrong, "")
    if expected.md5_prefix is not None:
        found = md5_of(path)[: len(expected.md5_prefix)]
        wrong = f"its md5 begins with {found}, expected is {expected.md5_prefix}"
        return ("", "the first digits of its md5") if found == expected.md5_prefix else (wrong, "")
    return "", "size alone" if expected.bytes is not None else ""


def md5_of(path: Path) -> str:
    """Hex digest; some publishers give no other sum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def verify_local_file(expected: Download, path: Path) -> VerifiedFile:
    """A file that the user has, verified where it lies; UserError where it is not what is expected."""
    with opened_once(path) as (stream, _):  # not while it is still being copied
        digest = sha256_of(stream)
    reason, verified = verify_against(expected, path, digest)
    if reason:
        raise UserError(
            f"{path}: {reason}; nothing was installed and the file stays where it is; "
            f"get it again, or, if you trust it, say --sha256 {digest}"
        )
    return VerifiedFile(path, "a file of this machine", path.stat().st_size, digest, verified)


def check_free_space(folder: Path, needed: int) -> None:
    """UserError where the disk of a folder has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {human(free)} free, up to {human(needed)} are needed (the download and what is made of "
            "it); free some, or choose another disk with SCANFOUNDRY_MODELS or --out"
        )
