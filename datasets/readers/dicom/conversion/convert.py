"""dcm2niix in a temporary folder: links with neutral names go in, NIfTI files come out, nothing else is kept."""

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dcm2niix
import pydicom

from scanfoundry.datasets.readers.dicom.conversion.slices import Scale, Slice, split
from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers
from scanfoundry.datasets.readers.dicom.headers.values import suppress_warnings
from scanfoundry.datasets.readers.dicom.pixels.codestream import FrameTooLargeError
from scanfoundry.datasets.readers.dicom.pixels.decode import frames_of
from scanfoundry.datasets.readers.dicom.series.grid import Grid, Plane
from scanfoundry.datasets.readers.scan import ReadError
from scanfoundry.datasets.readers.scratch import scratch_folder

# No defaults of the user's, no sidecar, no comment, uncompressed, neither cropped nor turned nor rescaled.
_OPTIONS = ["-g", "i", "-b", "n", "-c", "", "-z", "n", "-x", "i", "-l", "o", "-w", "2", "-f", "v"]
SECONDS = 120.0
BYTES_PER_SECOND = 1e6  # of compressed slices, on a slow machine
_PLAIN_SYNTAXES = {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
# The converter decodes these too. It is given them decoded all the same: every plane is then compared at no cost.
_KNOWN_SYNTAXES = {"1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"}
_SYNTAX = b"\x02\0\x10\0UI"  # the element of the transfer syntax, up to its length
_ELEMENT = 12  # bytes of a long explicit element before its value


@dataclass(frozen=True)
class Conversion:
    """`volumes`: NIfTI files in the order of their names; `slices`: what was converted, a file per plane or mosaic.

    Attributes:
        scales: (slope, intercept) of every plane, where the volumes hold stored values.
    """

    volumes: list[Path]
    slices: list[Slice]
    scales: list[Scale] | None = None


@contextmanager
def run_dcm2niix(
    files: Sequence[FileHeader], planes: Sequence[Plane], grid: Grid | None, as_they_are: bool = True
) -> Iterator[Conversion]:
    """Convert files in a folder that is removed when the context ends.

    Args:
        files: headers of one series.
        planes: of all files, in order; none for mosaics.
        grid: that they make up; None for mosaics.
        as_they_are: give the converter the files themselves; else copies of the planes with neutral headers, numbered
            by `grid`.

    Raises:
        ReadError: the converter fails, or takes longer than two minutes and a second per megabyte.
    """
    with scratch_folder() as folder:
        given, made = (folder / "in").resolve(), (folder / "out").resolve()
        given.mkdir()
        made.mkdir()
        scales: list[Scale] | None = None
        if grid is not None and not as_they_are:
            slices, scales = split(files, planes, grid, given)
        else:
            slices = [_place(file, given / f"{number:06d}.dcm") for number, file in enumerate(files)]
        seconds = SECONDS + sum(file.size for file in files) / BYTES_PER_SECOND
        command = [dcm2niix.bin, *_OPTIONS, "-o", str(made), str(given)]
        try:
            # What it prints names files, protocols and patients.
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReadError(f"dcm2niix did not end within {seconds:.0f} s") from error
        except OSError as error:
            raise ReadError("dcm2niix cannot be started") from error
        found = sorted(made.glob("*.nii"), key=_natural)
        if not found:
            raise ReadError("dcm2niix makes no volume of these files")
        yield Conversion(found, slices, scales)


def _place(file: FileHeader, path: Path) -> Slice:
    if file.syntax in _PLAIN_SYNTAXES:
        _link(file, path)
        return Slice.of_header(file, path)
    try:
        with suppress_warnings():
            return _decoded(file, path) if file.pixel_length < 0 < file.pixel_offset else _inflated(file, path)
    except FrameTooLargeError:
        raise
    except Exception as error:  # decoders and parsers raise whatever the damage makes them
        if file.syntax not in _KNOWN_SYNTAXES:
            raise ReadError("compressed pixels cannot be decoded") from error
        path.unlink(missing_ok=True)
        _link(file, path)
        return Slice.of_header(file, path)


def _link(file: FileHeader, path: Path) -> None:
    try:
        path.symlink_to(file.path.resolve())
    except OSError:  # exFAT, SMB: no links there
        shutil.copyfile(file.path, path)


def _decoded(file: FileHeader, path: Path) -> Slice:
    """A copy of `file` with its pixels decoded. Its header is taken as it is: to parse and write it costs as much."""
    (pixels,) = frames_of(file)
    stored = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    with file.path.open("rb") as opened:
        header = opened.read(file.pixel_offset - _ELEMENT)
    at = header.index(_SYNTAX) + len(_SYNTAX)
    (length,) = struct.unpack_from("<H", header, at)
    plain = pydicom.uid.ExplicitVRLittleEndian.encode().ljust(length, b"\0")
    if pixels.shape != (file.rows, file.columns) or pixels.itemsize * 8 != file.bits or len(plain) != length:
        raise ReadError("compressed pixels of another size than declared")
    padded = stored + b"\0" * (len(stored) % 2)
    element = b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", len(padded))
    path.write_bytes(header[: at + 2] + plain + header[at + 2 + length :] + element + padded)
    return Slice.at_the_end(path, pixels, (1.0 if file.slope is None else file.slope, file.intercept or 0.0))


def _inflated(file: FileHeader, path: Path) -> Slice:
    header = pydicom.dcmread(file.path, force=True)
    if header["PixelData"].is_undefined_length:
        header.decompress(as_rgb=False, generate_instance_uid=False)
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)
    return Slice.of_header(scan_headers([path])[0], path)


def name_suffixes(path: Path) -> set[str]:
    """What the converter appended to a name: {'Tilt'}, {'Eq'}, {'e2'}, {'ph'}, ..."""
    return set(path.stem.split("_")[1:])


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
