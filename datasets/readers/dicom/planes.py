"""The planes of a file: one of a classic slice, one per frame of an enhanced or a tomographic object."""

import pydicom
from pydicom.dataset import Dataset

from scanforge.datasets.readers.dicom.geometry import Plane
from scanforge.datasets.readers.dicom.headers import Survey
from scanforge.datasets.readers.dicom.kinds import NM
from scanforge.datasets.readers.dicom.quiet import quiet
from scanforge.datasets.readers.dicom.values import items, number, numbers
from scanforge.datasets.readers.scan import ReadError


def is_mosaic(file: Survey) -> bool:
    """Siemens mosaics and United Imaging's vframes: the slices of a volume lie side by side in one plane."""
    return "MOSAIC" in file.image_type or "VFRAME" in file.image_type


def planes_of(file: Survey) -> list[Plane]:
    """The planes of one file in the order of its frames. ReadError where their place is not given."""
    if file.functional_groups:
        return _enhanced(file)
    if file.sop_class == NM:
        return _tomography(file)
    if file.frames != 1:
        raise ReadError("several frames without a position each")
    return [_plane(file, file.position, file.orientation, file.spacing)]


def _plane(
    file: Survey,
    position: tuple[float, ...] | None,
    orientation: tuple[float, ...] | None,
    spacing: tuple[float, ...] | None,
) -> Plane:
    if position is None or orientation is None:
        raise ReadError("slices without position or orientation")
    if spacing is None:
        raise ReadError("slices without pixel spacing")
    return Plane(position, orientation, spacing, file.rows, file.columns)


def _enhanced(file: Survey) -> list[Plane]:
    with quiet():
        header = _header(file)
        shared = (items(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
        frames = items(header, "PerFrameFunctionalGroupsSequence")
        planes = [_frame(file, frame, shared) for frame in frames]
    if len(planes) != file.frames:
        raise ReadError(f"{file.frames} frames declared, {len(planes)} described")
    return planes


def _frame(file: Survey, frame: Dataset, shared: Dataset) -> Plane:
    def find(group: str, keyword: str, count: int) -> tuple[float, ...] | None:
        for place in (frame, shared):
            for item in items(place, group):
                found = numbers(item, keyword, count)
                if found is not None:
                    return found
        return None

    return _plane(
        file,
        find("PlanePositionSequence", "ImagePositionPatient", 3),
        find("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        find("PixelMeasuresSequence", "PixelSpacing", 2),
    )


def _header(file: Survey) -> Dataset:
    try:
        return pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
    except Exception as error:  # whatever damage makes pydicom raise
        raise ReadError("damaged DICOM header") from error


def _tomography(file: Survey) -> list[Plane]:
    """Nuclear medicine gives the first slice's place, and the distance from slice to slice."""
    with quiet():
        header = _header(file)
        detector = (items(header, "DetectorInformationSequence") or [Dataset()])[0]
        position = numbers(detector, "ImagePositionPatient", 3) or file.position
        orientation = numbers(detector, "ImageOrientationPatient", 6) or file.orientation
        step = file.between or number(header, "SliceThickness")
    if step is None:
        raise ReadError("reconstructed slices without a distance between them")
    first = _plane(file, position, orientation, file.spacing)
    a, b = first.orientation[:3], first.orientation[3:]
    normal = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    places = [tuple(p + n * step * k for p, n in zip(first.position, normal, strict=True)) for k in range(file.frames)]
    return [_plane(file, place, orientation, file.spacing) for place in places]
