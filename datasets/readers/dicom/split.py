"""Enhanced and tomographic objects as classic slices, one file per frame.

dcm2niix reads enhanced objects itself, yet where one holds several volumes it deals the frames of some makers onto the
wrong volumes, and nothing in its output shows it. Of classic slices it needs their positions only.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from scanforge.datasets.readers.dicom.decode import frames_of
from scanforge.datasets.readers.dicom.geometry import Grid, Plane
from scanforge.datasets.readers.dicom.headers import Survey
from scanforge.datasets.readers.dicom.quiet import quiet
from scanforge.datasets.readers.dicom.values import items, number
from scanforge.datasets.readers.scan import ReadError

_SERIES = "2.25.1"


def split(file: Survey, planes: Sequence[Plane], grid: Grid, folder: Path) -> list[Path]:
    """One file per frame of `file` in `folder`, in the order of `planes`. ReadError where frames cannot be decoded."""
    order = {plane: (k, v) for k, several in enumerate(grid.members) for v, plane in enumerate(several)}
    paths: list[Path] = []
    try:
        with quiet():
            header = pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
            scales = list(_scales(header, file))
            for frame, pixels in enumerate(frames_of(file)):
                slice_number, volume = order[frame]
                made = _slice(pixels, file, planes[frame], scales[frame])
                made.InstanceNumber = volume * len(grid.members) + slice_number + 1
                made.AcquisitionNumber = volume + 1
                made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(f"{_SERIES}.{frame + 1}")
                paths.append(folder / f"{frame:06d}.dcm")
                made.save_as(paths[-1], enforce_file_format=True)
    except Exception as error:  # decoders raise whatever the damage makes them
        raise ReadError("frames cannot be decoded") from error
    if len(paths) != len(planes):
        raise ReadError(f"{len(planes)} frames declared, {len(paths)} in the file")
    return paths


def _slice(pixels: np.ndarray, file: Survey, plane: Plane, scale: tuple[float, float]) -> Dataset:
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


def _scales(header: Dataset, file: Survey) -> Iterator[tuple[float, float]]:
    """(slope, intercept) of every frame."""
    shared = (items(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frames = items(header, "PerFrameFunctionalGroupsSequence") or [Dataset()] * file.frames
    for frame in frames:
        found = items(frame, "PixelValueTransformationSequence") or items(shared, "PixelValueTransformationSequence")
        slope = number(found[0], "RescaleSlope") if found else file.slope
        intercept = number(found[0], "RescaleIntercept") if found else file.intercept
        yield (1.0 if slope is None else slope, intercept or 0.0)
