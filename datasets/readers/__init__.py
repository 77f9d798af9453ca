"""From files to scans: one reader per kind of source."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers.bounds import check_spacing
from scanfoundry.datasets.readers.pattern import cases_of, split_pattern
from scanfoundry.datasets.readers.scan import NothingToStore, ReadError, Scan, Source

__all__ = [
    "KINDS",
    "SUFFIXES",
    "UNREAD",
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
    "pair": "pair:read_pair",
    "mgh": "mgh:read_mgh",
    "image": "image:read_image",
    "tiff": "tiff:read_tiff",
    "itk": "itk:read_itk",
    "array": "arrays:read_array",
    "frames": "frames:read_frames",
    "dicom-volume": "dicom.volumes:read_volume",
    "dicom-image": "dicom.images:read_image",
}
_OF_MASKS = {"image": "image:read_mask"}  # what reads a mask otherwise than a scan
SUFFIXES = {
    **dict.fromkeys((".nii", ".nii.gz", ".nii.bz2"), "nifti"),
    **dict.fromkeys((".hdr", ".hdr.gz"), "pair"),
    **dict.fromkeys((".mgz", ".mgh"), "mgh"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif"), "image"),
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd"), "itk"),
    **dict.fromkeys((".npy", ".npz"), "array"),
}
_VOXELS = (".img", ".img.gz")  # of a pair: read by way of their header
# Scans that are not read are refused with the reason; whatever else has no reader is no scan.
UNREAD = {
    **dict.fromkeys(_VOXELS, "the voxels of a pair (Analyze, NIfTI) whose header, .hdr of the same name, is missing"),
    **dict.fromkeys((".nii.zst", ".nii.xz", ".nii.zip", ".nii.7z"), "a NIfTI in a packing that is not read: unpack it"),
    **dict.fromkeys((".mnc", ".mnc.gz"), "MINC is not read: convert it to NIfTI (mnc2nii)"),
    **dict.fromkeys((".brik", ".brik.gz"), "AFNI is not read: convert it to NIfTI (3dAFNItoNIFTI)"),
    **dict.fromkeys((".rec",), "Philips PAR/REC is not read: convert it to NIfTI (dcm2niix)"),
    **dict.fromkeys((".gipl", ".gipl.gz"), "GIPL is not read: convert it to NIfTI"),
}
_PACKED = {".gz", ".bz2", ".zst", ".xz", ".zip", ".7z"}


def suffix_of(path: str | Path) -> str:
    """The lower-case suffix that chooses a reader; '.gz' and the like take the one before them along."""
    suffixes = PurePosixPath(path).suffixes
    keep = 2 if suffixes and suffixes[-1].lower() in _PACKED else 1
    return "".join(suffixes[-keep:]).lower()


def file_source(root: Path, relative: str) -> Source:
    """The source that is one file whose suffix has a reader, with the file of its voxels; ReadError where it has none.

    The .img of a pair stands for its .hdr.
    """
    relative = _header_beside(root, relative) or relative
    suffix = suffix_of(relative)
    kind = SUFFIXES.get(suffix)
    if kind is None:
        known = f"no reader for '{suffix}' files; known: {', '.join(SUFFIXES)}, DICOM"
        raise ReadError(UNREAD.get(suffix, known))
    files = (relative, *(_voxel_files(root, relative) if suffix in (".mhd", ".nhdr", ".hdr", ".hdr.gz") else ()))
    return Source.of_files(root, kind, files)


def _header_beside(root: Path, relative: str) -> str | None:
    """The header of the pair whose voxels `relative` is; None where it is no such file, or has none."""
    suffix = suffix_of(relative)
    return _beside(root, relative, (".hdr", ".hdr.gz")) if suffix in _VOXELS else None


def _beside(root: Path, relative: str, suffixes: Sequence[str]) -> str | None:
    """The file of the same name with one of `suffixes`, in small letters or in capitals."""
    stem = relative[: len(relative) - len(suffix_of(relative))]
    names = [stem + form for suffix in suffixes for form in (suffix, suffix.upper())]
    return next((name for name in names if (root / name).is_file()), None)


def _voxel_files(root: Path, relative: str) -> list[str]:
    """The files beside a header that hold its voxels; none where the header is damaged, which its reader will say."""
    from scanfoundry.datasets.readers.itk_header import data_files

    if suffix_of(relative) in (".hdr", ".hdr.gz"):
        voxels = _beside(root, relative, _VOXELS)
        return [voxels] if voxels else []
    try:
        names = data_files(root / relative)
    except (ReadError, OSError):
        return []
    found = [PurePosixPath(relative).parent / name for name in names]
    return [str(name) for name in found if (root / name).is_file()]


def scans_of(source: Source, mask: bool = False) -> Iterator[Scan]:
    """The scans of a source, one at a time; ReadError (the reason) where it holds none that can be used.

    mask: it is read for its label numbers, not to be looked at. No scan leaves with a spacing that is none of a scan:
    `check_spacing`.
    """
    reads = _OF_MASKS.get(source.kind, KINDS[source.kind]) if mask else KINDS[source.kind]
    module, function = reads.split(":")
    reader: Callable[[Source], Iterator[Scan]] = getattr(import_module(f"{__name__}.{module}"), function)
    try:
        for scan in reader(source):
            check_spacing(scan.spacing)
            yield scan
            del scan  # not beside the next one in memory
    except MemoryError as error:
        raise ReadError("does not fit into memory") from error


def read(path: Path, mask: bool = False) -> list[Scan]:
    """All scans in the file `path`, at least one; see `scans_of`."""
    path = Path(path)
    try:
        return list(scans_of(file_source(path.parent, path.name), mask))
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}") from error


def find_files(inputs: Sequence[Path]) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Files under `inputs` (folders, files, or patterns with '*') whose suffix has a reader, and all others.

    A file is (root, path relative to the root with '/'), sorted; an input that is a file has its folder as root.
    Hidden files and folders are left alone, links to folders followed once; a folder that cannot be listed stands
    among the files. UserError for a missing input.
    """
    found: set[tuple[Path, str]] = set()
    others: set[tuple[Path, str]] = set()
    for given in inputs:
        path = Path(given)
        if path.is_file():
            candidates = [(path.parent, _header_beside(path.parent, path.name) or path.name)]
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
