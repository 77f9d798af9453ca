"""The file formats: one line for each in `FORMATS`, and those that plug-ins add.

A further format is one file with a reader and one line here, or one file outside of this package that the environment
variable SCANFOUNDRY_PLUGINS names (see `configs.plugins`), with the same line in its `PLUGINS`:

    def read_toy(source: Source) -> Iterator[Scan]:
        ...

    PLUGINS = {"format": [FileFormat("toy", read_toy, (".toy",))]}

A plain tuple of the same values, ("toy", read_toy, (".toy",)), does as well.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.plugins import plugins
from scanfoundry.configs.registry import resolve
from scanfoundry.datasets.readers.scan import Scan, Source

Reader = Callable[[Source], Iterator[Scan]]
Companions = Callable[[Path, str], list[str]]
F = TypeVar("F", bound=Callable[..., Any])


class FileFormat(NamedTuple):
    """What the readers have to know of one file format.

    Functions are given themselves, or as "module:function" of this package: a reader is then imported when the first
    file of its format is met, since all of them together take seconds.

    Attributes:
        name: of the format; it is the `kind` of its sources.
        reader: yields the scans of a `Source`, one at a time, and raises `ReadError` with the reason where a file holds
            none that can be used.
        suffixes: in lower case with the leading dot, '.nii.gz' among them. Empty where files are recognised otherwise.
        mask_reader: reads a file that is a mask, where that differs from reading a scan.
        companions: (folder, path of a file below it) -> paths of the other files that hold its voxels.
    """

    name: str
    reader: Reader | str
    suffixes: tuple[str, ...] = ()
    mask_reader: Reader | str = ""
    companions: Companions | str = ""


FORMATS = (
    FileFormat("nifti", "nifti:read_nifti", (".nii", ".nii.gz", ".nii.bz2")),
    FileFormat("pair", "pair:read_pair", (".hdr", ".hdr.gz"), companions="companions:voxels_of_pair"),
    FileFormat("mgh", "mgh:read_mgh", (".mgz", ".mgh")),
    FileFormat("image", "image:read_image", (".png", ".jpg", ".jpeg", ".bmp", ".gif"), "image:read_mask"),
    FileFormat("tiff", "tiff:read_tiff", (".tif", ".tiff")),
    FileFormat("itk", "itk:read_itk", (".nrrd", ".nhdr", ".mha", ".mhd"), companions="companions:voxels_of_itk"),
    FileFormat("array", "arrays:read_array", (".npy", ".npz")),
    FileFormat("frames", "frames:read_frames"),
    FileFormat("dicom-volume", "dicom.volumes:read_volume"),
    FileFormat("dicom-image", "dicom.images:read_image"),
)
# Scans that are not read are refused with the reason; whatever else has no reader is no scan.
UNREAD = {
    **dict.fromkeys(
        (".img", ".img.gz"),
        "the voxels of a pair (Analyze, NIfTI) whose header, .hdr of the same name, is missing",
    ),
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


@cache
def formats() -> dict[str, FileFormat]:
    """All formats by name, those of plug-ins last.

    Raises:
        UserError: a plug-in's entry is none, or has the name or a suffix of another format.
    """
    found = {each.name: each for each in FORMATS}
    owners = {suffix: each.name for each in FORMATS for suffix in each.suffixes}
    for entry in plugins("format"):
        added = _checked(entry)
        taken = [suffix for suffix in added.suffixes if suffix in owners]
        if added.name in found or taken:
            which = f"suffix '{taken[0]}' is of '{owners[taken[0]]}'" if taken else "name is taken"
            raise UserError(f"the format '{added.name}' of a plug-in cannot be added: its {which}")
        found[added.name] = added
        owners |= dict.fromkeys(added.suffixes, added.name)
    return found


@cache
def _by_suffix() -> dict[str, str]:
    """The name of the format by suffix. It is asked for every name of a data set, so it is made once."""
    return {suffix: each.name for each in formats().values() for suffix in each.suffixes}


def function_of(given: F | str) -> F:
    """The function that an entry of a format gives, imported where it is given as "module:function"."""
    found: F = resolve(f"scanfoundry.datasets.readers.{given}" if isinstance(given, str) else given)
    return found


def _checked(entry: Any) -> FileFormat:
    """A plug-in's entry as a format. UserError where it is none."""
    try:
        found = FileFormat(*entry)
    except TypeError as error:
        raise UserError(f"a plug-in's format is a FileFormat or (name, reader, suffixes), not {entry!r}") from error
    plain = isinstance(found.suffixes, tuple) and all(suffix == suffix_of(f"x{suffix}") for suffix in found.suffixes)
    if not (isinstance(found.name, str) and callable(found.reader) and found.suffixes and plain):
        raise UserError(
            f"the format '{found.name}' of a plug-in needs a name, a function that reads a Source, and a tuple of "
            "suffixes in small letters, such as ('.toy',)"
        )
    return found


class _Suffixes(Mapping[str, str]):
    """The name of the format by suffix. Plug-ins are loaded at the first look, not while this module is imported:
    they may import any other part of the package, which may need this one."""

    def __getitem__(self, suffix: str) -> str:
        return _by_suffix()[suffix]

    def __contains__(self, suffix: object) -> bool:  # what Mapping has raises and catches a KeyError for most files
        return suffix in _by_suffix()

    def __iter__(self) -> Iterator[str]:
        return iter(_by_suffix())

    def __len__(self) -> int:
        return len(_by_suffix())


SUFFIXES = _Suffixes()
