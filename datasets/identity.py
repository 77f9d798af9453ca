"""Who a scan belongs to, without saying who: keyed hashes (HMAC-SHA256) of patient and path.

The key is the site's own secret. With it, hashes agree across builds, so splits by patient and leakage checks work;
without it, nobody can try names or record numbers against the hashes.
"""

import hashlib
import hmac
import os
import re
import secrets
import shlex
import stat
from itertools import pairwise
from pathlib import Path

from scanfoundry.configs.errors import UserError

_LONGEST = 1024  # bytes of a key's file that are looked at
_DISTINCT = 16  # different bytes among 32: of random ones there are 30, and never fewer than 16
_NOBODY = 65534
_SUFFIX = re.compile(r"(\.(nii|hdr)\.gz|\.nii\.bz2|\.[A-Za-z0-9]+)$", re.IGNORECASE)
BIDS_SUBJECT = re.compile(r"(?:^|(?<=[/_]))sub-[A-Za-z0-9]+(?=[/_.]|$)")


def site_key(path: Path | None = None) -> bytes:
    """The site's secret key.

    Args:
        path: file of the key; None: $SCANFOUNDRY_KEY_FILE, else ~/.config/scanfoundry/site.key. A file that is missing
            is made, with mode 0600.

    Returns:
        32 bytes.

    Raises:
        UserError: the file cannot be read or made, holds no key, or a key that is no secret (bytes that repeat or count
            up), or others than its owner may read or replace it.
    """
    given = path or os.environ.get("SCANFOUNDRY_KEY_FILE")
    file = Path(given) if given else Path.home() / ".config" / "scanfoundry" / "site.key"
    try:
        if not file.exists():
            _create(file)
        with open(file, "rb") as stream:  # one file for the look at it and for its content
            _check_unshared(file, os.fstat(stream.fileno()))
            key = bytes.fromhex(stream.read(_LONGEST).decode("ascii").strip())
    except OSError as error:
        raise UserError(f"cannot use the site key {file}: {error.strerror}; name another with --key-file") from error
    except ValueError as error:
        raise UserError(f"{file} is not a site key (64 hexadecimal digits)") from error
    if len(key) != 32:
        raise UserError(f"{file} is not a site key (64 hexadecimal digits)")
    if len(set(key)) < _DISTINCT or len({(after - before) % 256 for before, after in pairwise(key)}) == 1:
        raise UserError(
            f"the site key {file} is no secret: its bytes repeat or count up, so patients could be guessed; move it "
            "away, and the next build makes a new one (hashes made with this one will not agree with it)"
        )
    return key


def _check_unshared(file: Path, status: os.stat_result) -> None:
    """UserError where others can read or change the key, or it is not this user's; a pipe (of a vault) may be any's."""
    if os.name != "posix" or not stat.S_ISREG(status.st_mode):
        return
    mode, mine = stat.S_IMODE(status.st_mode), os.geteuid()
    if mode & 0o077:
        raise UserError(
            f"others than you may read the site key {file} (mode {mode:04o}), with which patients can be guessed: "
            f"chmod 600 {shlex.quote(str(file))} (where its disk knows no modes, keep it on another: --key-file)"
        )
    # Root reads anyone's; what a network disk shows as nobody's is whoever's it lets read it.
    if mine != 0 and status.st_uid not in (mine, 0, _NOBODY):
        raise UserError(
            f"the site key {file} belongs to another user (number {status.st_uid}), who can change it: make a copy of "
            f"your own, install -m 600 {shlex.quote(str(file))} my.key, and name it with --key-file"
        )


def _create(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32) + "\n")
    try:
        # A link, unlike a rename, leaves the key of a process that was faster in place.
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def keyed_hash(key: bytes, kind: str, text: str) -> str:
    """HMAC-SHA256 of a text.

    Args:
        key: the site's key.
        kind: name space of the hash: 'patient', 'scan', 'study', ...
        text: what is hashed.

    Returns:
        The first 32 hexadecimal digits.
    """
    return hmac.new(key, f"{kind}\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:32]


def site_fingerprint(key: bytes) -> str:
    """A hash that differs between the keys of two sites and does not reveal them. Manifests and releases hold it."""
    return keyed_hash(key, "site", "")


def patient_of(relative_path: str, regex: str | None = None, study: str | None = None) -> str:
    """The identifier of the patient in a path.

    Args:
        relative_path: path below the input folder, '/' between its parts.
        regex: a pattern whose first group is the patient (the whole match where it has none).
        study: the study that the file shares with others, if any. Its contrasts must never be on both sides of a split.

    Returns:
        Without a pattern, the BIDS entity `sub-XXX`, else `study`, else the path without its suffix: each file is then
        a patient of its own.

    Raises:
        UserError: the pattern is no regular expression, or does not match the path.
    """
    if regex is not None:
        try:
            found = re.search(regex, relative_path)
        except re.error as error:
            raise UserError(f"the patient pattern '{regex}' is no regular expression: {error}") from error
        if found is None:
            raise UserError(f"the patient pattern '{regex}' does not match '{relative_path}'")
        return found.group(1) or "" if found.re.groups else found.group(0)
    subject = BIDS_SUBJECT.search(relative_path)
    return subject[0] if subject else study or _SUFFIX.sub("", relative_path)


def fraction(hashed: str) -> float:
    """A keyed hash as a number in [0, 1). A patient is held out of training where it is below the share of holdouts."""
    return int(hashed[:13], 16) / 16**13
