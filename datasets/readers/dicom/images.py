"""Images: single planes and runs of frames, by pydicom, at the full range of what was stored."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.metadata import metadata_of_dataset
from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers
from scanfoundry.datasets.readers.dicom.headers.values import integer, items, number, numbers, suppress_warnings
from scanfoundry.datasets.readers.dicom.pixels.decode import frames_of, without_padding
from scanfoundry.datasets.readers.dicom.pixels.integrity import check_complete
from scanfoundry.datasets.readers.guard import check_expansion, check_voxels
from scanfoundry.datasets.readers.nifti import compact
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

PHYSICAL = ("ct", "mr", "pt", "nm")  # values that mean something: not turned round where only the display is


def read_image(source: Source) -> Iterator[Scan]:
    """Read the image of a 'dicom-image' source.

    The modality LUT is applied, a VOI LUT where it is a table (a window only says what a screen shows, and would clip).
    MONOCHROME1 is inverted where values are brightness. Palettes and YBR become RGB.

    Args:
        source: one file.

    Yields:
        One scan (1 or 3, D, H, W). D counts frames; where D > 1, `frames` is set.

    Raises:
        ReadError: the file holds no image that can be used.
    """
    (file,) = scan_headers(source.paths)
    if file.state != "dicom":
        raise ReadError("the file is gone or no DICOM any more")
    check_complete(file)
    check_expansion(file.rows * file.columns * file.frames * file.samples * max(1, file.bits // 8), file.size)
    try:
        with suppress_warnings():
            header = pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
            known = metadata_of_dataset(header, file)
            voxels = _frames(file, header, known.modality)
            spacing = pixel_spacing(header, file)
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever the damage makes them
        raise ReadError(_why(error, file)) from error
    check_voxels(voxels)
    if voxels.min() == voxels.max():
        raise ReadError("every pixel has the same value")
    yield Scan(
        voxels, (1.0, *spacing), modality=known.modality, facts=known.facts,
        warnings=known.warnings(voxels.shape[1:], None), frames=file.frames > 1,
    )  # fmt: skip


def _why(error: Exception, file: FileHeader) -> str:
    if isinstance(error, NotImplementedError):
        return "pixels in a transfer syntax that cannot be decoded"
    if "plugins are missing" in str(error) or "is not supported" in str(error):
        return "pixels in a transfer syntax that cannot be decoded"
    return "compressed pixels cannot be decoded" if file.pixel_length < 0 else "pixels do not fit their header"


def _frames(file: FileHeader, header: Dataset, modality: str) -> NDArray:
    """All frames (C, D, H, W), decoded one after the other into one array."""
    voxels: NDArray | None = None
    count = 0
    for count, frame in enumerate(frames_of(file), 1):
        image = _rendered(frame, file, header, modality)
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        if voxels is None:
            voxels = np.empty((image.shape[0], file.frames, *image.shape[1:]), image.dtype)
        if count > file.frames:
            break
        if image.dtype != voxels.dtype:
            voxels = voxels.astype(np.result_type(voxels, image))
        voxels[:, count - 1] = image
    if voxels is None or count != file.frames:
        raise ReadError(f"{file.frames} frames declared, {count} in the file")
    return voxels


def _rendered(frame: NDArray, file: FileHeader, header: Dataset, modality: str) -> NDArray:
    """One frame (1 or 3, H, W)."""
    if file.photometric == "PALETTE COLOR":
        return np.moveaxis(_palette(frame, header), -1, 0)
    if frame.ndim == 3:
        return np.moveaxis(frame, -1, 0)
    values: Any = apply_modality_lut(frame, header)
    table = items(header, "VOILUTSequence") if values.dtype.kind in "iu" else []
    if table:
        values = apply_voi(values, header)
    if file.photometric == "MONOCHROME1" and modality not in PHYSICAL:
        ends = _table_ends(table[0]) if table else apply_modality_lut(_stored_ends(frame, file), header)
        values = ends.sum(dtype=np.float64) - values
    values = compact(np.asarray(values))
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return (without_padding(values, file) if modality == "ct" else values)[None]


def _stored_ends(frame: NDArray, file: FileHeader) -> NDArray:
    """The darkest and the brightest value that the header allows; the same for all images of a device."""
    low = -(1 << file.stored_bits - 1) if file.signed else 0
    ends = (min(low, int(frame.min())), max(low + (1 << file.stored_bits) - 1, int(frame.max())))
    return np.asarray(ends, frame.dtype.newbyteorder("="))


def _table_ends(table: Dataset) -> NDArray:
    """The ends of what a lookup table puts out."""
    bits = int(numbers(table, "LUTDescriptor", 3)[2])  # type: ignore[index]  # pydicom has just used it
    return np.asarray((0, (1 << bits) - 1))


def _palette(frame: NDArray, header: Dataset) -> NDArray:
    colours = apply_color_lut(frame, header)
    if colours.dtype == np.uint16 and not (colours & 0xFF).any():
        return (colours >> 8).astype(np.uint8)
    return colours


_CENTIMETRES = 3  # code of an ultrasound region's unit


def pixel_spacing(header: Dataset, file: FileHeader) -> tuple[float, float]:
    """(between rows, between columns) in mm; 1 where nothing is known.

    At the detector where the patient's plane is not calibrated. An ultrasound's counts if all its spatial regions
    share it; a text or Doppler panel has none.
    """
    found = file.spacing or _shared(header)
    found = found or numbers(header, "ImagerPixelSpacing", 2) or numbers(header, "NominalScannedPixelSpacing", 2)
    found = found or _ultrasound(header)
    return (found[0], found[1]) if found is not None and min(found) > 0 else (1.0, 1.0)


def _shared(header: Dataset) -> tuple[float, ...] | None:
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in items(header, groups)[:1]:
            for measures in items(group, "PixelMeasuresSequence"):
                return numbers(measures, "PixelSpacing", 2)
    return None


def _ultrasound(header: Dataset) -> tuple[float, float] | None:
    found = set()
    for region in items(header, "SequenceOfUltrasoundRegions"):
        units = {integer(region, f"PhysicalUnits{axis}Direction", 0) for axis in "XY"}
        x, y = number(region, "PhysicalDeltaX"), number(region, "PhysicalDeltaY")
        if units == {_CENTIMETRES} and x and y:
            found.add((round(abs(y) * 10, 6), round(abs(x) * 10, 6)))
    return found.pop() if len(found) == 1 else None
