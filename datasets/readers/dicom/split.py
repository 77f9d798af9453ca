"""Slices as plain classic ones with neutral headers, one file per frame, numbered volume after volume.

dcm2niix trusts headers that are better left out. Where an enhanced object holds several volumes it deals the frames of
some makers onto the wrong ones; of classic slices whose instance numbers do not run through a volume it drops or mixes
some; and slopes below 1e-7 are all the same to it. Of such slices as these it needs the positions only.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from scanfoundry.datasets.readers.dicom.codestream import FrameTooLargeError
from scanfoundry.datasets.readers.dicom.decode import frames_of
from scanfoundry.datasets.readers.dicom.geometry import Grid, Plane
from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.slices import Slice
from scanfoundry.datasets.readers.dicom.suppress_warnings import quiet
from scanfoundry.datasets.readers.dicom.tiles import has_tiles, tile_layout
from scanfoundry.datasets.readers.dicom.values import items, number
from scanfoundry.datasets.readers.scan import ReadError

_SERIES = "2.25.1"
FINEST = 1e-4  # a slope that the converter tells from its neighbours

Scale = tuple[float, float]  # slope, intercept


def split(
    files: Sequence[Survey], planes: Sequence[Plane], grid: Grid, folder: Path
) -> tuple[list[Slice], list[Scale] | None]:
    """One file per plane in `folder`, in the order of `planes`; and each one's scale, where it is not in the file.

    ReadError where frames cannot be decoded.
    """
    order = {plane: (k, v) for k, several in enumerate(grid.members) for v, plane in enumerate(several)}
    try:
        with quiet():
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


def _pixels(files: Sequence[Survey], tiles: int) -> Iterator[NDArray]:
    """The planes' pixels as stored, (rows, columns)."""
    for file in files:
        if not has_tiles(file):
            yield from frames_of(file)
            continue
        high, wide = tile_layout(tiles)
        (mosaic,) = frames_of(file)
        cut = mosaic.reshape(high, file.rows // high, wide, file.columns // wide).swapaxes(1, 2)
        yield from cut.reshape(-1, *cut.shape[2:])[:tiles]


def _slice(pixels: NDArray, file: Survey, plane: Plane, scale: Scale) -> Dataset:
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


def _scales(file: Survey, planes: int) -> Iterator[Scale]:
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
