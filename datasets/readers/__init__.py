"""From files to scans: one reader per format, a dict from suffix to reader."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from scanforge.configs.errors import UserError
from scanforge.datasets.readers.image import read_image
from scanforge.datasets.readers.nifti import read_nifti
from scanforge.datasets.readers.scan import ReadError, Scan

__all__ = ["READERS", "ReadError", "Scan", "find_files", "find_scans", "read", "suffix_of"]

_PLAIN_SUFFIX = re.compile(r"(\.[a-z][a-z0-9]{0,7})+")

READERS: dict[str, Callable[[Path], list[Scan]]] = {
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".png": read_image,
    ".jpg": read_image,
    ".jpeg": read_image,
}


def suffix_of(path: str | Path) -> str:
    """The lower-case suffix that chooses a reader; '.gz' takes the one before it along."""
    suffixes = PurePosixPath(path).suffixes
    keep = 2 if suffixes and suffixes[-1].lower() == ".gz" else 1
    return "".join(suffixes[-keep:]).lower()


def read(path: Path) -> list[Scan]:
    """The scans in `path`, at least one. ReadError (the reason) where it holds none that can be used."""
    reader = READERS.get(suffix_of(path))
    if reader is None:
        raise ReadError(f"no reader for '{suffix_of(path)}' files; known: {', '.join(READERS)}")
    try:
        return reader(Path(path))
    except MemoryError as error:
        raise ReadError("does not fit into memory") from error


def find_files(inputs: Sequence[Path]) -> tuple[list[tuple[Path, str]], dict[str, int]]:
    """Files with a reader under `inputs` (folders or files) and, by suffix, how many others lie there.

    A file is (root, path relative to the root with '/'), sorted; an input that is a file has its folder as root.
    Hidden files and folders are left alone, links to folders followed once. UserError for a missing input.
    """
    found: set[tuple[Path, str]] = set()
    others: dict[str, int] = {}
    for given in inputs:
        path = Path(given)
        if path.is_file():
            candidates = [(path.parent, path.name)]
        elif path.is_dir():
            candidates = [(path, relative) for relative in _walk(path)]
        else:
            raise UserError(f"input '{given}' does not exist")
        for root, relative in candidates:
            if suffix_of(relative) in READERS:
                found.add((root, relative))
            else:
                # An odd ending may be part of an identifier (a DICOM UID); it is not repeated.
                suffix = suffix_of(relative) if _PLAIN_SUFFIX.fullmatch(suffix_of(relative)) else "(other)"
                others[suffix] = others.get(suffix, 0) + 1
    return sorted(found, key=lambda file: (file[1], str(file[0]))), dict(sorted(others.items()))


def find_scans(inputs: Sequence[Path]) -> list[tuple[Path, str]]:
    """(root, relative path) of every file under `inputs` that has a reader, sorted; see `find_files`."""
    return find_files(inputs)[0]


def _walk(root: Path) -> list[str]:
    relatives: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relatives += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return relatives
