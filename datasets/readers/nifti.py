"""NIfTI: headers by nibabel, voxels as a stream, so that a 4D series never lies in memory whole."""

import bz2
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from scanfoundry.datasets.readers.geometry import geometry
from scanfoundry.datasets.readers.guard import check_expansion, check_ratio, reason_of
from scanfoundry.datasets.readers.nifti_geometry import affine_of, check_sizes
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

_SLAB = 1 << 20  # voxels that are scaled at a time
_DEFLATE = 1100  # times its size is the most that deflated data can grow
_PIECE = 1 << 20  # bytes of what is passed over at a time
_MOST_BEFORE = 1 << 26  # bytes between a packed header and its voxels: extensions
DAMAGE: tuple[type[Exception], ...] = (
    WrapStructError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    isal_zlib.error,  # type: ignore[assignment]
)


def read_nifti(source: Source) -> Iterator[Scan]:
    """The scans in a .nii, .nii.gz or .nii.bz2: one, or one per volume of a 4D series (`part` is its number).

    An array (x, y, z) becomes its transpose (D, H, W); a slice has depth 1. Voxels equal nibabel's `img.dataobj`, in
    the smallest dtype that holds every one of them exactly. Lengths are mm, whatever unit the header counts in.
    ReadError says why a file is refused.
    """
    path = source.paths[0]
    try:
        with opened(path) as stream:
            yield from _scans(stream, path.stat().st_size)
    except DAMAGE as error:
        raise ReadError(f"not a readable NIfTI: {reason_of(error, path)}") from error


def header_of(path: Path) -> Any:
    """The header of a NIfTI file as nibabel's object, its fields as they are.

    Raises:
        ReadError: the file has no header of a NIfTI.
    """
    try:
        with opened(path) as stream:
            return _header(stream)
    except DAMAGE as error:
        raise ReadError(f"not a readable NIfTI: {reason_of(error, path)}") from error


def opened(path: Path) -> BinaryIO:
    """The content of a file, decompressed where it begins as gzip or bzip2 does, whatever it is called."""
    with open(path, "rb") as stream:
        start = stream.read(3)
    if start == b"BZh":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    return igzip.open(path, "rb") if start[:2] == b"\x1f\x8b" else open(path, "rb")


def _scans(stream: BinaryIO, size: int) -> Iterator[Scan]:
    header = _header(stream)
    affine = affine_of(header)
    spacing, orientation = geometry(affine)
    check_sizes(header, spacing)
    shape, count, dtype = array_of(header)
    voxels = int(np.prod([int(length) for length in shape]))
    if isinstance(stream, bz2.BZ2File):  # which makes a million bytes of one
        check_expansion(voxels * count * dtype.itemsize, size)
    elif voxels * count * dtype.itemsize > _DEFLATE * size:
        raise ReadError(f"{size} bytes cannot hold the shape {header.get_data_shape()} of its header")
    check_expansion(voxels * dtype.itemsize, voxels * dtype.itemsize)  # volumes are in memory one at a time
    check_ratio(voxels * count * dtype.itemsize, size)
    for volume in range(count):
        raw = exactly(stream, voxels * dtype.itemsize).view(dtype).reshape(shape[::-1])
        if volume == count - 1:
            # To the end, unlike nibabel: gzip's checksum stands there, and damage would pass as voxels.
            _to_the_end(stream, size)
        array = scaled(raw, *header.get_slope_inter())
        part = "" if count == 1 else str(volume)
        yield Scan(array[None], spacing, affine, orientation, part=part)
        del raw, array  # not beside the next volume in memory


def _header(stream: BinaryIO) -> Any:
    content = stream.read(4)
    sizes = {int.from_bytes(content, "little"), int.from_bytes(content, "big")}
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    size = next((size for size in kinds if size in sizes), None)
    if size is None or len(content) < 4:
        raise ReadError("not a readable NIfTI: it does not begin with a NIfTI header")
    header = kinds[size].from_fileobj(io.BytesIO(content + stream.read(size - 4)), check=False)
    offset = _offset_of(header)
    if bytes(header["magic"])[:2] in (b"ni", b"") and offset < size:
        raise ReadError("a NIfTI header without its voxels: of a pair, which is called .hdr and .img")
    _pass_over(stream, offset - size)
    return header


def _offset_of(header: Any) -> int:
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and 0 <= offset < 2**62):
        raise ReadError(f"its header puts the voxels at byte {offset:g}")
    return int(header.get_data_offset())


def _pass_over(stream: BinaryIO, count: int) -> None:
    """What lies between header and voxels, never in memory as a whole."""
    if count < 0:
        raise ReadError("its header puts the voxels into itself")
    if count > _MOST_BEFORE:
        raise ReadError(f"its header puts the voxels {count} bytes behind itself; at most {_MOST_BEFORE} are passed")
    while count > 0:
        got = len(stream.read(min(count, _PIECE)))
        if not got:
            raise ReadError(f"not a readable NIfTI: it ends {count} bytes early")
        count -= got


def _to_the_end(stream: BinaryIO, size: int) -> None:
    """What follows the voxels; ReadError where that is more than files of `size` bytes hold."""
    found = 0
    while got := len(stream.read(_PIECE)):
        found += got
        check_ratio(found, size)


def exactly(stream: BinaryIO, count: int) -> NDArray[np.uint8]:
    """`count` bytes of the stream.

    Raises:
        ReadError: the stream ends before.
    """
    content = np.empty(count, np.uint8)  # memory is taken as it is filled: a header that lies does not get it
    view, filled = content.data, 0
    while filled < count:
        got = stream.readinto(view[filled : filled + (1 << 24)])  # type: ignore[attr-defined]
        if not got:
            raise ReadError(f"not a readable NIfTI: it ends {count - filled} bytes early")
        filled += got
    return content


def array_of(header: Any) -> tuple[tuple[int, int, int], int, np.dtype]:
    """Shape (x, y, z) of a volume, how many there are, and their dtype.

    Raises:
        ReadError: no scan has such a shape or dtype.
    """
    shape, count = _shape_of(header)
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        raise ReadError(f"voxels of a type that nobody knows (code {error})") from error
    _refuse(dtype)
    if min(*shape, count) <= 0:
        raise ReadError(f"empty: shape {header.get_data_shape()}")
    return shape, count, dtype


def _shape_of(header: Any) -> tuple[tuple[int, int, int], int]:
    """Shape (x, y, z) of a volume, and how many there are."""
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4:
        raise ReadError(f"{len(shape)}D array of shape {shape}; 2D, 3D and series of 3D are read")
    x, y, z, count = (*shape, *[1] * (4 - len(shape)))
    return (x, y, z), count


def _refuse(dtype: np.dtype) -> None:
    if dtype.fields is not None:
        raise ReadError("RGB NIfTI (structured voxels) is not supported; convert it to one channel")
    if dtype.kind not in "iufb":
        raise ReadError(f"voxels of type {dtype} are not supported")
    if dtype.itemsize > 8:
        raise ReadError(f"voxels of type {dtype} do not fit into 64 bits exactly")


def scaled(raw: NDArray, slope: float | None, inter: float | None) -> NDArray:
    """raw * slope + inter (float64, as nibabel computes it), stored as `compact` does.

    Raises:
        ReadError: a value is not finite.
    """
    if slope in (None, 1.0) and inter in (None, 0.0):
        if raw.dtype.kind == "f" and not np.isfinite(raw).all():
            raise ReadError("holds NaN or infinite voxels")
        return compact(raw)
    flat = raw.reshape(-1)

    def slab(begin: int) -> NDArray[np.float64]:
        part = flat[begin : begin + _SLAB].astype(np.float64)
        if slope not in (None, 1.0):
            part *= slope
        if inter not in (None, 0.0):
            part += inter
        return part

    begins = range(0, flat.size, _SLAB)
    kind = np.result_type(*[smallest(slab(begin)) for begin in begins])
    if kind.itemsize == 8 and all(np.array_equal(slab(begin).astype(np.float32), slab(begin)) for begin in begins):
        kind = np.dtype(np.float32)  # of integers in one slab and fractions in another
    out = np.empty(raw.shape, kind)
    for begin in begins:
        out.reshape(-1)[begin : begin + _SLAB] = slab(begin)
    return out


def smallest(array: NDArray) -> np.dtype:
    """The smallest dtype that holds every number of the finite `array` exactly.

    Raises:
        ReadError: a number is not finite.
    """
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ReadError("holds NaN or infinite voxels")
    for name in ("u1", "i1", "u2", "i2", "u4", "i4", "f4"):
        kind = np.dtype(name)
        limits: Any = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
        if limits.min <= low and high <= limits.max and np.array_equal(array.astype(kind), array):
            return kind
    return array.dtype


def compact(array: NDArray) -> NDArray:
    """`array` in native byte order; wide floats and integers in the smallest dtype that is exactly equal.

    Scaling (slope and intercept) turns integers into float64 on reading; most of those are integers or float32 still.
    """
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if native.dtype.itemsize < 8 else native.astype(smallest(native), copy=False)
