"""From files to scans: which files have a reader, and the scans that it yields. The formats are in `formats`."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers.companions import header_beside
from scanfoundry.datasets.readers.formats import SUFFIXES, UNREAD, FileFormat, formats, function_of, suffix_of
from scanfoundry.datasets.readers.geometry import check_spacing
from scanfoundry.datasets.readers.listing import FileListing
from scanfoundry.datasets.readers.paths import cases_of, split_pattern
from scanfoundry.datasets.readers.scan import NothingToStore, ReadError, Scan, Source

__all__ = [
    "SUFFIXES",
    "UNREAD",
    "FileFormat",
    "FileListing",
    "NothingToStore",
    "ReadError",
    "Scan",
    "Source",
    "file_source",
    "find_files",
    "find_scans",
    "list_files",
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
    found, others = list_files(inputs)
    return found, _sorted(set(others))


def list_files(inputs: Sequence[Path]) -> tuple[list[tuple[Path, str]], FileListing]:
    """The same as `find_files`, with the files without a reader's suffix, of which there may be millions, packed."""
    found: set[tuple[Path, str]] = set()
    others = FileListing()

    def add(root: Path, relatives: Iterable[str]) -> None:
        for relative in relatives:
            if suffix_of(relative) in SUFFIXES:
                found.add((root, relative))
            else:
                others.add(root, relative)

    for given in inputs:
        path = Path(given)
        if path.is_file():
            add(path.parent, [header_beside(path.parent, path.name) or path.name])
        elif path.is_dir():
            for folder, names in _walk(path):
                known = {name for name in names if suffix_of(name) in SUFFIXES}
                found.update((path, _joined(folder, name)) for name in known)
                others.add_folder(path, folder, [name for name in names if name not in known])
        elif (pattern := split_pattern(path)) is not None and pattern[0].is_dir():
            below = (_joined(folder, name) for folder, names in _walk(pattern[0]) for name in names)
            add(pattern[0], cases_of(pattern[1], below).values())
        else:
            raise UserError(f"input '{given}' does not exist")
    return _sorted(found), others


def _sorted(files: set[tuple[Path, str]]) -> list[tuple[Path, str]]:
    return sorted(files, key=lambda file: (file[1], str(file[0])))


def plain_suffix(relative: str) -> str:
    """The suffix of an ignored file for messages: "(other)" for an odd ending, which may be a part of an identifier."""
    return suffix_of(relative) if _PLAIN_SUFFIX.fullmatch(suffix_of(relative)) else "(other)"


def find_scans(inputs: Sequence[Path]) -> list[tuple[Path, str]]:
    """(root, relative path) of every file under `inputs` whose suffix has a reader, sorted; see `find_files`."""
    return find_files(inputs)[0]


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below `root` ('' for itself) with the names in it; one that cannot be listed comes as a name."""
    seen: set[tuple[int, int]] = set()
    closed: list[str] = []

    def note(error: OSError) -> None:
        closed.append(Path(error.filename).relative_to(root).as_posix())

    for folder, folders, files in os.walk(root, onerror=note, followlinks=True):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        yield "" if below == "." else below, [name for name in files if not name.startswith(".")]
    for name in closed:
        above, _, last = name.rpartition("/")
        yield above, [last]
