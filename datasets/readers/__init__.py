"""From files to scans: one reader per kind of source."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath

from scanforge.configs.errors import UserError
from scanforge.datasets.readers.pattern import cases_of, split_pattern
from scanforge.datasets.readers.scan import NothingToStore, ReadError, Scan, Source

__all__ = [
    "KINDS",
    "SUFFIXES",
    "NothingToStore",
    "ReadError",
    "Scan",
    "Source",
    "file_source",
    "find_files",
    "find_scans",
    "read",
    "scans_of",
    "suffix_of",
]

_PLAIN_SUFFIX = re.compile(r"(\.[a-z][a-z0-9]{0,7})+")

# A reader is imported when its kind is met: together they take seconds.
KINDS = {
    "nifti": "nifti:read_nifti",
    "image": "image:read_image",
    "tiff": "tiff:read_tiff",
    "itk": "itk:read_itk",
    "array": "arrays:read_array",
    "frames": "frames:read_frames",
    "dicom-volume": "dicom.volumes:read_volume",
    "dicom-image": "dicom.images:read_image",
}
SUFFIXES = {
    **dict.fromkeys((".nii", ".nii.gz"), "nifti"),
    **dict.fromkeys((".png", ".jpg", ".jpeg"), "image"),
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd"), "itk"),
    **dict.fromkeys((".npy", ".npz"), "array"),
}


def suffix_of(path: str | Path) -> str:
    """The lower-case suffix that chooses a reader; '.gz' takes the one before it along."""
    suffixes = PurePosixPath(path).suffixes
    keep = 2 if suffixes and suffixes[-1].lower() == ".gz" else 1
    return "".join(suffixes[-keep:]).lower()


def file_source(root: Path, relative: str) -> Source:
    """The source that is one file whose suffix has a reader; ReadError where it has none."""
    kind = SUFFIXES.get(suffix_of(relative))
    if kind is None:
        raise ReadError(f"no reader for '{suffix_of(relative)}' files; known: {', '.join(SUFFIXES)}, DICOM")
    files = (relative, *(_voxel_files(root, relative) if suffix_of(relative) in (".mhd", ".nhdr") else ()))
    return Source.of_files(root, kind, files)


def _voxel_files(root: Path, relative: str) -> list[str]:
    """The files beside a header that hold its voxels; none where the header is damaged, which its reader will say."""
    from scanforge.datasets.readers.itk_header import data_files

    try:
        names = data_files(root / relative)
    except (ReadError, OSError):
        return []
    found = [PurePosixPath(relative).parent / name for name in names]
    return [str(name) for name in found if (root / name).is_file()]


def scans_of(source: Source) -> Iterator[Scan]:
    """The scans of a source, one at a time; ReadError (the reason) where it holds none that can be used."""
    module, function = KINDS[source.kind].split(":")
    reader: Callable[[Source], Iterator[Scan]] = getattr(import_module(f"{__name__}.{module}"), function)
    try:
        yield from reader(source)
    except MemoryError as error:
        raise ReadError("does not fit into memory") from error


def read(path: Path) -> list[Scan]:
    """All scans in the file `path`, at least one; ReadError (the reason) where it holds none that can be used."""
    path = Path(path)
    try:
        return list(scans_of(file_source(path.parent, path.name)))
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}") from error


def find_files(inputs: Sequence[Path]) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Files under `inputs` (folders, files, or patterns with '*') whose suffix has a reader, and all others.

    A file is (root, path relative to the root with '/'), sorted; an input that is a file has its folder as root.
    Hidden files and folders are left alone, links to folders followed once. UserError for a missing input.
    """
    found: set[tuple[Path, str]] = set()
    others: set[tuple[Path, str]] = set()
    for given in inputs:
        path = Path(given)
        if path.is_file():
            candidates = [(path.parent, path.name)]
        elif path.is_dir():
            candidates = [(path, relative) for relative in _walk(path)]
        elif (pattern := split_pattern(path)) is not None and pattern[0].is_dir():
            root = pattern[0]
            candidates = [(root, relative) for relative in cases_of(pattern[1], _walk(root)).values()]
        else:
            raise UserError(f"input '{given}' does not exist")
        for root, relative in candidates:
            (found if suffix_of(relative) in SUFFIXES else others).add((root, relative))
    return _sorted(found), _sorted(others)


def _sorted(files: set[tuple[Path, str]]) -> list[tuple[Path, str]]:
    return sorted(files, key=lambda file: (file[1], str(file[0])))


def plain_suffix(relative: str) -> str:
    """The suffix for telling people what was ignored; an odd ending may be part of an identifier (a DICOM UID)."""
    return suffix_of(relative) if _PLAIN_SUFFIX.fullmatch(suffix_of(relative)) else "(other)"


def find_scans(inputs: Sequence[Path]) -> list[tuple[Path, str]]:
    """(root, relative path) of every file under `inputs` whose suffix has a reader, sorted; see `find_files`."""
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
