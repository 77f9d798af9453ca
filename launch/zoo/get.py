"""`scanfoundry models get`: from a name to an installed release, once, whoever else asks at the same time."""

import logging
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from scanfoundry.backbones import models_folder
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.address import Unavailable, is_url, join, shown
from scanfoundry.datasets.storage.locks import exclusive
from scanfoundry.launch.zoo.catalogue import CatalogueModel, Download
from scanfoundry.launch.zoo.download import Progress, RetryPolicy, download, no_progress
from scanfoundry.launch.zoo.verifying import VerifiedFile, check_free_space, verify_local_file

logger = logging.getLogger(__name__)

MIRROR = "SCANFOUNDRY_MIRROR"
_WAIT = 1800.0  # s in which another process that installs the same model may show no sign of life


@dataclass(frozen=True)
class InstallOptions:
    """What the user asked for beside the name."""

    out: Path | None = None  # None: the models folder, under the model's name
    source: Path | None = None  # a file or folder of this machine instead of the network
    sha256: str | None = None  # expected instead of the catalogue's
    in_channels: int | None = None
    patience: RetryPolicy = field(default_factory=RetryPolicy)


def get(entry: CatalogueModel, wish: InstallOptions, progress: Progress = no_progress) -> Path:
    """Install a model once: download or read its file, verify it, convert it, put the release in place.

    Args:
        entry: the model, from the catalogue.
        wish: what the user chose beside the name.
        progress: called with the bytes that are here and those of the whole file.

    Returns:
        The folder of the release; a second call finds it there and changes nothing.

    Raises:
        UserError: the file cannot be had or is not what it should be, or the folder is in use. Nothing is installed.
    """
    target = (wish.out or models_folder() / entry.name).absolute()
    if installed(target, entry, wish):
        return target
    work = target.parent / f".{target.name}.download"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {work}: {error.strerror}; set SCANFOUNDRY_MODELS, or give --out") from error
    lock = target.parent / f".{target.name}.lock"
    with exclusive(lock, _WAIT, sign_of_life=lambda: _sizes(work)):
        if installed(target, entry, wish):  # by whoever had the lock before
            return target
        expected = _expected_download(entry, wish)
        from scanfoundry.launch.zoo.installing import install  # torch is needed from here on

        fetched = _obtain(entry, expected, wish, work, progress)
        try:
            install(entry, fetched, target, work, wish.in_channels)
        except UserError as error:
            raise UserError(f"{error}{_keep_unverified(fetched, expected, work)}") from error
        shutil.rmtree(work, ignore_errors=True)  # ours alone: a file of the user's is read where it lies
    return target


def installed(target: Path, entry: CatalogueModel, wish: InstallOptions) -> bool:
    """Whether the model is installed already, whole and for the channels asked for.

    Raises:
        UserError: the folder holds something else, is damaged, or was installed for other channels.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    from scanfoundry.launch.zoo.origin import read_origin

    origin = read_origin(target)
    if origin is None or origin.name != entry.name:
        raise UserError(f"{target} exists and is not {entry.name} as installed by scanfoundry; give another --out")
    from scanfoundry.backbones.models.release import load_release

    info = load_release(target).info
    channels = wish.in_channels or entry.in_channels
    if info.backbone.in_channels != channels:
        raise UserError(
            f"{target} is installed for {info.backbone.in_channels} input channels, {channels} are asked for: "
            "install it a second time with --out, or move the folder away"
        )
    logger.info("%s is already installed in %s", entry.name, target)
    return True


def _expected_download(entry: CatalogueModel, wish: InstallOptions) -> Download:
    """What the file must be: the catalogue's word, or the user's."""
    if wish.sha256 is None:
        return entry.download
    given = wish.sha256.lower()
    if len(given) != 64 or set(given) - set("0123456789abcdef"):
        raise UserError("--sha256 takes the 64 hexadecimal digits of a sum")
    return entry.download.model_copy(update={"sha256": given, "bytes": None, "md5_prefix": None})


def _obtain(
    entry: CatalogueModel, expected: Download, wish: InstallOptions, work: Path, progress: Progress
) -> VerifiedFile:
    mirror = os.environ.get(MIRROR, "")
    if wish.source is not None:
        found = _on_disk(wish.source, entry)
    elif mirror and not is_url(mirror):
        found = _on_disk(Path(mirror), entry)
    else:
        urls = [join(mirror, f"{entry.name}/{expected.file}")] if mirror else list(expected.urls)
        whole = work / expected.file
        if whole.is_file():  # an earlier run was ended between the download and its conversion
            try:
                return replace(verify_local_file(expected, whole), origin=shown(urls[0]))
            except UserError:
                whole.replace(work / f"{expected.file}.wrong")
        try:
            return download(expected, urls, work, wish.patience, progress)
        except Unavailable as error:
            raise UserError(_advice_on_failure(error, entry, bool(mirror))) from error
    check_free_space(work, found.stat().st_size)
    logger.info("reading %s", found)
    return verify_local_file(expected, found)


def _keep_unverified(fetched: VerifiedFile, expected: Download, work: Path) -> str:
    """Where a download went that no sum had verified and that cannot be read, so that the next run gets another."""
    if fetched.path.parent != work or expected.sha256 is not None:
        return ""
    kept = fetched.path.replace(work / f"{expected.file}.wrong")
    return f"; nothing was installed, what came is kept as {kept}"


def _on_disk(place: Path, entry: CatalogueModel) -> Path:
    """The model's file: itself, in a folder, or in a mirror's folder; UserError where it is in none."""
    file = entry.download.file
    for path in (place, place / file, place / entry.name / file):
        if path.is_file():
            return path
    raise UserError(f"{place} has neither {file} nor {entry.name}/{file}; get it from {entry.page}")


def _advice_on_failure(error: Unavailable, entry: CatalogueModel, mirrored: bool) -> str:
    """What a person can do about a file that cannot be fetched."""
    if mirrored:
        return f"{error}; put the file on the mirror as {entry.name}/{entry.download.file}, or unset {MIRROR}"
    gone = "it may have moved or need a login: " if error.status in (401, 403, 404, 410) else ""
    return (
        f"{error}; {gone}get {entry.download.file} from {entry.page} in a browser, "
        f"then 'scanfoundry models get {entry.name} --from FILE'"
    )


def _sizes(folder: Path) -> tuple[tuple[str, int], ...]:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            found.append((path.name, path.stat().st_size))
        except OSError:  # renamed meanwhile: that is a sign of life too
            found.append((path.name, -1))
    return tuple(found)
