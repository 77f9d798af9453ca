"""Pairs of a header (.hdr) and its voxels (.img): NIfTI's, and Analyze 7.5 with the scaling of SPM."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel import nifti1, nifti2
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Spacing3D
from scanfoundry.datasets.readers.geometry import check_spacing, geometry
from scanfoundry.datasets.readers.guard import check_expansion, check_ratio, reason_of
from scanfoundry.datasets.readers.nifti import DAMAGE, array_of, exactly, opened, scaled
from scanfoundry.datasets.readers.nifti_geometry import affine_of, check_sizes
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

_UNITS = {"mm": 1.0, "cm": 10.0, "um": 1e-3}  # of Analyze, where somebody has filled it in

Geometry = tuple[Spacing3D, NDArray[np.float64] | None, str]


def read_pair(source: Source) -> Iterator[Scan]:
    """The scans of a pair, compressed or not: one, or one per volume of a 4D series (`part` is its number).

    A NIfTI pair lies where its header says. Analyze 7.5 knows sizes but no directions (left and right were a matter of
    habit): its scans have a spacing and no affine. ReadError says why a pair is refused.
    """
    path, *others = source.paths
    if not others:
        raise ReadError("a header without its voxels: the .img of the same name is missing")
    try:
        header = _header(path)
        with opened(others[0]) as stream:
            offset = int(header.get_data_offset())
            yield from scans(stream, header, offset, _geometry(header), others[0].stat().st_size)
    except DAMAGE as error:
        raise ReadError(f"not a readable pair of .hdr and .img: {reason_of(error, path)}") from error


def scans(stream: BinaryIO, header: Any, offset: int, place: Geometry, size: int) -> Iterator[Scan]:
    """The volumes in `stream` from `offset` on. size: of the file in bytes, which bounds what is believed."""
    shape, count, dtype = array_of(header)
    volume = int(np.prod([int(length) for length in shape])) * dtype.itemsize
    plain = isinstance(stream, io.BufferedReader) and type(stream.raw) is io.FileIO
    if offset < 0 or (plain and offset + volume * count > size):
        raise ReadError(f"cut short: {max(0, size - offset)} of {volume * count} bytes of voxels")
    check_expansion(volume, volume)
    if not plain:
        check_ratio(volume * count, size)
    spacing, affine, orientation = place
    while offset > 0:  # in pieces: a header that lies does not get the memory
        offset -= len(exactly(stream, min(offset, 1 << 20)))
    for number in range(count):
        raw = exactly(stream, volume).view(dtype).reshape(shape[::-1])
        if number == count - 1:
            _check_end(stream, size)
        array = scaled(raw, *header.get_slope_inter())
        part = "" if count == 1 else str(number)
        yield Scan(array[None], spacing, affine, orientation, part=part)
        del raw, array  # not beside the next volume in memory


def _check_end(stream: BinaryIO, size: int) -> None:
    """Reads what is left: a checksum stands at the end of what is compressed, and damage would pass as voxels."""
    left = 0
    while piece := stream.read(1 << 20):
        left += len(piece)
        check_ratio(left, size)


def _header(path: Path) -> Any:
    with opened(path) as stream:
        content = stream.read(540)
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    size = next((size for size in (348, 540) if size in sizes and len(content) >= size), None)
    if size is None:
        raise ReadError("no header of NIfTI or Analyze")
    magic = content[344:347] if size == 348 else content[4:7]
    if magic in (b"n+1", b"n+2"):
        raise ReadError("a header that says its voxels follow in the same file, which is a .nii and no .hdr")
    kinds = {b"ni1": nifti1.Nifti1PairHeader, b"ni2": nifti2.Nifti2PairHeader}
    kind = kinds.get(magic, nib.Spm2AnalyzeHeader if size == 348 else nifti2.Nifti2PairHeader)
    return kind.from_fileobj(io.BytesIO(content[:size]), check=False)


def _geometry(header: Any) -> Geometry:
    if not isinstance(header, nib.Spm2AnalyzeHeader):
        affine = affine_of(header)
        spacing, orientation = geometry(affine)
        check_sizes(header, spacing)
        return spacing, affine, orientation
    unit = bytes(header["vox_units"]).split(b"\0")[0].decode("latin-1").strip().lower()
    x, y, z = (abs(float(step)) * _UNITS.get(unit, 1.0) for step in header["pixdim"][1:4])
    z = z if len(header.get_data_shape()) > 2 and z else 1.0
    check_spacing((z, y, x), unit if unit in _UNITS else "")
    return (z, y, x), None, ""
