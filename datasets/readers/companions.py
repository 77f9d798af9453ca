"""Files beside a header that hold its voxels, and the header of a file of voxels."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from scanfoundry.datasets.readers.formats import suffix_of
from scanfoundry.datasets.readers.scan import ReadError

_HEADERS, _VOXELS = (".hdr", ".hdr.gz"), (".img", ".img.gz")  # of a pair


def header_beside(root: Path, relative: str) -> str | None:
    """The header of the pair whose voxels lie at `relative` below `root`; None where that is no such file, or alone."""
    return _beside(root, relative, _HEADERS) if suffix_of(relative) in _VOXELS else None


def voxels_of_pair(root: Path, relative: str) -> list[str]:
    """The file of voxels of the pair whose header lies at `relative` below `root`; [] where there is none."""
    voxels = _beside(root, relative, _VOXELS)
    return [voxels] if voxels else []


def voxels_of_itk(root: Path, relative: str) -> list[str]:
    """The files of voxels that an .mhd or .nhdr names; [] where its header is damaged, which its reader will say."""
    from scanfoundry.datasets.readers.itk_header import data_files

    if suffix_of(relative) not in (".mhd", ".nhdr"):
        return []
    try:
        names = data_files(root / relative)
    except (ReadError, OSError):
        return []
    found = [PurePosixPath(relative).parent / name for name in names]
    return [str(name) for name in found if (root / name).is_file()]


def _beside(root: Path, relative: str, suffixes: Sequence[str]) -> str | None:
    """The file of the same name with one of `suffixes`, in small letters or in capitals."""
    stem = relative[: len(relative) - len(suffix_of(relative))]
    names = [stem + form for suffix in suffixes for form in (suffix, suffix.upper())]
    return next((name for name in names if (root / name).is_file()), None)
