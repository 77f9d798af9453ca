"""Frames of a file, decoded by pydicom one after the other; the padding of a CT replaced by air."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import iter_pixels

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.pixels.codestream import check_frame_sizes
from scanfoundry.datasets.readers.dicom.pixels.gdcm_plugin import register, suppress_stderr
from scanfoundry.datasets.readers.scan import ReadError


def frames_of(file: FileHeader) -> Iterator[NDArray]:
    """Frames (H, W) or (H, W, 3) as stored, YBR turned into RGB. Raises whatever damage makes a decoder raise.

    FrameTooLargeError before any decoder sees a frame that is far larger than its header declares.
    """
    check_frame_sizes(file)
    register()
    frames = _decoded(file)
    while True:
        with without_panic(file.syntax == pydicom.uid.RLELossless):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


@contextmanager
def without_panic(is_rle: bool = True) -> Iterator[None]:
    """Turn the panic of the RLE decoder into a ReadError.

    The decoder is written in Rust. On a frame that it does not expect it raises what is no `Exception`.
    """
    try:
        with suppress_stderr() if is_rle else nullcontext():
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ReadError("compressed pixels cannot be decoded") from None


def _decoded(file: FileHeader) -> Iterator[NDArray]:
    known = file.syntax in pydicom.uid.AllTransferSyntaxes and not file.loose_pixels
    if known and file.syntax != pydicom.uid.DeflatedExplicitVRLittleEndian:
        yield from iter_pixels(file.path)
    else:
        yield from iter_pixels(read_dataset(file.path))


def read_dataset(path: Path) -> Any:
    """The parsed file with pixels; without a known syntax it is the plain one that pydicom has parsed it in."""
    dataset = pydicom.dcmread(path, force=True)
    if dataset.file_meta.get("TransferSyntaxUID", "") not in pydicom.uid.AllTransferSyntaxes:
        implicit, little = dataset.original_encoding
        plain = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if little else pydicom.uid.ExplicitVRBigEndian
    return dataset


AIR = -1024  # HU
_NEAR = 64  # HU that lossy compression moves a value by, at most places


def without_padding(voxels: NDArray, file: FileHeader) -> NDArray:
    """Voxels in HU; those that the header marks as padding become air where they lie below it.

    Values such as -3024 outside the round field of view are no density, and they would widen every statistic of the
    scan. Nothing else is touched: real voxels below -1024 stay. But lossy compression blurs the mark: single pixels of
    the padding would hit it, their neighbours miss it. There everything below air is padding or its rim.
    """
    if file.padding is None or voxels.dtype.kind == "u":
        return voxels
    slope, intercept = 1.0 if file.slope is None else file.slope, file.intercept or 0.0
    low, high = sorted(value * slope + intercept for value in file.padding)
    if low >= AIR:
        return voxels
    below = min(high, np.nextafter(AIR, low))
    marked = voxels == low if low == high else (voxels >= low) & (voxels <= below)
    if file.lossy or _is_blurred(voxels, marked, low - _NEAR, min(below, high + _NEAR)):
        return np.maximum(voxels, np.asarray(AIR, voxels.dtype))
    return np.where(marked, np.asarray(AIR, voxels.dtype), voxels)


def _is_blurred(voxels: NDArray, marked: NDArray[np.bool_], low: float, high: float) -> bool:
    """Whether values beside the mark occur too: nobody says of all files that they were compressed with loss."""
    hits = np.count_nonzero(marked)
    return bool(hits > 0 and np.count_nonzero((voxels >= low) & (voxels <= high)) > hits)
