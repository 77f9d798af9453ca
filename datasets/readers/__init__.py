"""From files to scans: which files have a reader, and the scans that it yields. The formats are in `formats`."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers.companions import header_beside
from scanfoundry.datasets.readers.formats import SUFFIXES, UNREAD, FileFormat, formats, function_of, suffix_of
from scanfoundry.datasets.readers.geometry import check_spacing
from scanfoundry.datasets.readers.paths import cases_of, split_pattern
from scanfoundry.datasets.readers.scan import NothingToStore, ReadError, Scan, Source

__all__ = [
    "SUFFIXES",
    "UNREAD",
    "FileFormat",
    "NothingToStore",
    "ReadError",
    "Scan",
    "Source",
    "file_source",
    "find_files",
    "find_scans",
    "plain_suffix",
    "read",
    "scans_of",
    "suffix_of",
]

_PLAIN_SUFFIX = re.compile(r"(\.[a-z][a-z0-9]{0,7})+")


def file_source(root: Path, relative: str) -> Source:
    """The source that is one file, together with the files that hold its voxels.

    Args:
        root: folder of the input.
        relative: path of the file below `root`, with '/' between its parts. The .img of a pair stands for its .hdr.

    Raises:
        ReadError: no reader has the file's suffix; the text says which files are read, or how to convert this one.
        OSError: the file is not there.
    """
    relative = header_beside(root, relative) or relative
    suffix = suffix_of(relative)
    kind = SUFFIXES.get(suffix)
    if kind is None:
        known = f"no reader for '{suffix}' files; known: {', '.join(SUFFIXES)}, DICOM"
        raise ReadError(UNREAD.get(suffix, known))
    companions = formats()[kind].companions
    others = function_of(companions)(root, relative) if companions else []
    return Source.of_files(root, kind, (relative, *others))


def scans_of(source: Source, mask: bool = False) -> Iterator[Scan]:
    """Read the scans of a source, one at a time.

    Args:
        source: what to read; its `kind` names the format.
        mask: the source is read for its label numbers, not to be looked at.

    Yields:
        Scans with a spacing that `check_spacing` accepts. Only one of them is in memory where the caller keeps none.

    Raises:
        ReadError: the source holds no scan that can be used, with the reason.
    """
    form = formats()[source.kind]
    reader = function_of(form.mask_reader or form.reader) if mask else function_of(form.reader)
    try:
        for scan in reader(source):
            check_spacing(scan.spacing)
            yield scan
            del scan  # not beside the next one in memory
    except MemoryError as error:
        raise ReadError("does not fit into memory") from error


def read(path: Path, mask: bool = False) -> list[Scan]:
    """Read all scans in one file.

    Args:
        path: of the file.
        mask: it is read for its label numbers, not to be looked at.

    Returns:
        At least one scan.

    Raises:
        ReadError: the file cannot be opened, has no reader, or holds no scan that can be used.
    """
    path = Path(path)
    try:
        return list(scans_of(file_source(path.parent, path.name), mask))
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}") from error


def find_files(inputs: Sequence[Path]) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Find the files below some inputs, split by whether a reader has their suffix.

    Hidden files and folders are left alone, and links to folders are followed once.

    Args:
        inputs: folders, files, or patterns with '*'. An input that is a file has its folder as root.

    Returns:
        The files whose suffix has a reader, and all others, each as (root, path below the root with '/' between its
        parts), sorted. A folder that cannot be listed stands among the files.

    Raises:
        UserError: an input is missing.
    """
    found: set[tuple[Path, str]] = set()
    others: set[tuple[Path, str]] = set()
    for given in inputs:
        path = Path(given)
        if path.is_file():
            candidates = [(path.parent, header_beside(path.parent, path.name) or path.name)]
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
    """The suffix of an ignored file for messages: "(other)" for an odd ending, which may be a part of an identifier."""
    return suffix_of(relative) if _PLAIN_SUFFIX.fullmatch(suffix_of(relative)) else "(other)"


def find_scans(inputs: Sequence[Path]) -> list[tuple[Path, str]]:
    """(root, relative path) of every file under `inputs` whose suffix has a reader, sorted; see `find_files`."""
    return find_files(inputs)[0]


def _walk(root: Path) -> list[str]:
    relatives: list[str] = []
    seen: set[tuple[int, int]] = set()

    def closed(error: OSError) -> None:
        relatives.append(Path(error.filename).relative_to(root).as_posix())

    for folder, folders, files in os.walk(root, onerror=closed, followlinks=True):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relatives += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return relatives
