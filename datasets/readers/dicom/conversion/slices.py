"""Slices as they are given to the converter: files as they lie, or copies with neutral headers.

dcm2niix trusts headers that are better left out. Where an enhanced object holds several volumes it sorts the frames of
some makers into the wrong ones; of classic slices whose instance numbers do not run through a volume it drops or mixes
some; and it takes all slopes below 1e-7 for the same. Of slices with neutral headers it needs the positions only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.values import items, number, suppress_warnings
from scanfoundry.datasets.readers.dicom.pixels.codestream import FrameTooLargeError
from scanfoundry.datasets.readers.dicom.pixels.decode import frames_of, read_dataset, without_panic
from scanfoundry.datasets.readers.dicom.pixels.gdcm_plugin import register
from scanfoundry.datasets.readers.dicom.series.grid import Grid, Plane
from scanfoundry.datasets.readers.dicom.series.tiles import has_tiles, tile_layout
from scanfoundry.datasets.readers.scan import ReadError

_PLAIN = {"": "<", "1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}


@dataclass(frozen=True)
class Slice:
    """A file of one plane: `shape` (rows, columns), stored values as `dtype` from `offset` on (-1: compressed)."""

    path: Path
    shape: tuple[int, int]
    dtype: str
    offset: int
    slope: float
    intercept: float

    @classmethod
    def of_header(cls, file: FileHeader, path: Path) -> "Slice":
        """`file` as it lies, known to the converter as `path`."""
        readable = file.syntax in _PLAIN and file.pixel_length > 0 and file.bits in (8, 16, 32) and file.samples == 1
        dtype = f"{_PLAIN.get(file.syntax, '<')}{'i' if file.signed else 'u'}{max(8, file.bits) // 8}"
        slope = 1.0 if file.slope is None else file.slope
        offset = file.pixel_offset if readable else -1
        return cls(path, (file.rows, file.columns), dtype, offset, slope, file.intercept or 0.0)

    @classmethod
    def at_the_end(cls, path: Path, pixels: NDArray, scale: tuple[float, float]) -> "Slice":
        """A file just written, whose last element is `pixels` (rows, columns), padded to an even length."""
        dtype = pixels.dtype.newbyteorder("<").str
        offset = path.stat().st_size - pixels.nbytes - pixels.nbytes % 2
        return cls(path, (pixels.shape[0], pixels.shape[1]), dtype, offset, *scale)

    def raw(self) -> NDArray | None:
        """The stored values as they lie in the file; None where they are compressed."""
        if self.offset < 0:
            return None
        values = np.fromfile(self.path, self.dtype, self.shape[0] * self.shape[1], offset=self.offset)
        return values.reshape(self.shape) if values.size == self.shape[0] * self.shape[1] else None

    def decoded(self) -> NDArray:
        """The stored values as pydicom decodes them.

        Raises:
            ReadError: pydicom cannot decode them.
        """
        register()
        try:
            with suppress_warnings(), without_panic():
                return read_dataset(self.path).pixel_array
        except Exception as error:  # decoders raise whatever the damage makes them
            raise ReadError("pixels cannot be decoded") from error


_SERIES = "2.25.1"
FINEST = 1e-4  # a slope that the converter tells from its neighbours

Scale = tuple[float, float]  # slope, intercept


def split(
    files: Sequence[FileHeader], planes: Sequence[Plane], grid: Grid, folder: Path
) -> tuple[list[Slice], list[Scale] | None]:
    """Write one classic slice with a neutral header for each plane, numbered volume after volume.

    Args:
        files: headers of the series.
        planes: of all files, in order.
        grid: that they make up.
        folder: where the files are written.

    Returns:
        The slices in the order of `planes`, and the scale of each where it is not in its file.

    Raises:
        ReadError: frames cannot be decoded.
    """
    order = {plane: (k, v) for k, several in enumerate(grid.members) for v, plane in enumerate(several)}
    try:
        with suppress_warnings():
            scales = [scale for file in files for scale in _scales(file, len(planes) // len(files))]
            kept = scales if is_fine(slope for slope, _ in scales) else None
            slices: list[Slice] = []
            for frame, pixels in enumerate(_pixels(files, len(planes) // len(files))):
                slice_number, volume = order[frame]
                scale = scales[frame] if kept is None else (1.0, 0.0)
                made = _slice(pixels, files[0], planes[frame], scale)
                made.InstanceNumber = volume * len(grid.members) + slice_number + 1
                made.AcquisitionNumber = volume + 1
                made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(f"{_SERIES}.{frame + 1}")
                path = folder / f"{frame:06d}.dcm"
                made.save_as(path, enforce_file_format=True)
                slices.append(Slice.at_the_end(path, pixels, scale))
    except FrameTooLargeError:
        raise
    except Exception as error:  # decoders raise whatever the damage makes them
        raise ReadError("frames cannot be decoded") from error
    if len(slices) != len(planes):
        raise ReadError(f"{len(planes)} frames declared, {len(slices)} in the file")
    return slices, kept


def is_fine(slopes: Iterable[float]) -> bool:
    """Whether slopes are so small that the converter takes them for equal, or for none."""
    return any(abs(slope) < FINEST for slope in slopes)


def _pixels(files: Sequence[FileHeader], tiles: int) -> Iterator[NDArray]:
    """The planes' pixels as stored, (rows, columns)."""
    for file in files:
        if not has_tiles(file):
            yield from frames_of(file)
            continue
        high, wide = tile_layout(tiles)
        (mosaic,) = frames_of(file)
        cut = mosaic.reshape(high, file.rows // high, wide, file.columns // wide).swapaxes(1, 2)
        yield from cut.reshape(-1, *cut.shape[2:])[:tiles]


def _slice(pixels: NDArray, file: FileHeader, plane: Plane, scale: Scale) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = CTImageStorage if file.modality == "CT" else MRImageStorage
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.Modality = "CT" if file.modality == "CT" else "MR"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SeriesNumber = _SERIES, f"{_SERIES}.0", 1
    made.ImageType = ["ORIGINAL", "PRIMARY"]
    made.ImagePositionPatient = [float(f"{x:.8g}") for x in plane.position]
    made.ImageOrientationPatient = [float(f"{x:.10f}") for x in plane.orientation]
    made.PixelSpacing = [float(f"{x:.8g}") for x in plane.spacing]
    made.RescaleSlope, made.RescaleIntercept = (float(f"{x:.10g}") for x in scale)
    made.Rows, made.Columns, made.SamplesPerPixel = plane.rows, plane.columns, 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    made["PixelData"].VR = "OW"
    return made


def _scales(file: FileHeader, planes: int) -> Iterator[Scale]:
    """(slope, intercept) of each of a file's planes."""
    of_file = (1.0 if file.slope is None else file.slope, file.intercept or 0.0)
    if not file.functional_groups:
        yield from [of_file] * planes
        return
    header = pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
    shared = (items(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame in items(header, "PerFrameFunctionalGroupsSequence"):
        found = items(frame, "PixelValueTransformationSequence") or items(shared, "PixelValueTransformationSequence")
        slope = number(found[0], "RescaleSlope") if found else file.slope
        intercept = number(found[0], "RescaleIntercept") if found else file.intercept
        yield (1.0 if slope is None else slope, intercept or 0.0)
