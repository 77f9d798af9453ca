"""The planes of a file and of a series: their places, their grid, and which of them are one volume."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from scanfoundry.datasets.readers.dicom.headers.attributes import (
    APART,
    Attribute,
    Value,
    attributes_of_files,
    attributes_of_frame,
    attributes_of_frames,
)
from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.raw_elements import short_elements
from scanfoundry.datasets.readers.dicom.headers.sop_classes import NM
from scanfoundry.datasets.readers.dicom.headers.values import items, number, numbers, suppress_warnings, value
from scanfoundry.datasets.readers.dicom.series.acquisitions import is_plain, sort_into_volumes
from scanfoundry.datasets.readers.dicom.series.grid import Grid, Plane, stack
from scanfoundry.datasets.readers.dicom.series.tiles import has_tiles, header_of, plane_of, tiles_of
from scanfoundry.datasets.readers.scan import ReadError

# InStackPositionNumber, ImagePositionPatient, SliceLocation, ImagePositionVolume
_IN_SPACE = frozenset((Tag(0x0020, 0x9057), Tag(0x0020, 0x0032), Tag(0x0020, 0x1041), Tag(0x0020, 0x9301)))


def is_mosaic(file: FileHeader) -> bool:
    """Siemens mosaics and United Imaging's vframes: the slices of a volume lie side by side in one plane."""
    return "MOSAIC" in file.image_type or "VFRAME" in file.image_type


def planes_of(file: FileHeader) -> list[Plane]:
    """The planes of one file in the order of its frames or tiles.

    Raises:
        ReadError: their place is not given.
    """
    return planes_and_attributes(file)[0]


def planes_and_attributes(file: FileHeader) -> tuple[list[Plane], list[dict[str, Value]]]:
    """The planes, and of each frame of an enhanced object the attributes that may tell acquisitions apart."""
    if has_tiles(file):
        return tiles_of(file), []
    if file.functional_groups:
        return _enhanced(file)
    return _classic(file), []


def _classic(file: FileHeader) -> list[Plane]:
    if file.sop_class == NM:
        return _tomography(file)
    if file.frames != 1:
        raise ReadError("several frames without a position each")
    return [plane_of(file, file.position, file.orientation, file.spacing)]


def _enhanced(file: FileHeader) -> tuple[list[Plane], list[dict[str, Value]]]:
    with suppress_warnings():
        header = header_of(file)
        shared = (items(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
        frames = items(header, "PerFrameFunctionalGroupsSequence")
        planes = [_frame(file, frame, shared) for frame in frames]
        attributes = [attributes_of_frame(frame) | _dimensions(header, frame) for frame in frames]
    if len(planes) != file.frames:
        raise ReadError(f"{file.frames} frames declared, {len(planes)} described")
    return planes, attributes


def _dimensions(header: Dataset, frame: Dataset) -> dict[str, Value]:
    """The frame's place along the object's dimensions, but for those in space. A damaged one says nothing."""
    pointers = [value(one, "DimensionIndexPointer") for one in items(header, "DimensionIndexSequence")]
    places = [numbers(one, "DimensionIndexValues", len(pointers)) for one in items(frame, "FrameContentSequence")]
    found = next((place for place in places if place is not None), ())
    named = zip(pointers, found, strict=False)
    return {f"dimension {pointer}": (place,) for pointer, place in named if pointer not in _IN_SPACE}


def _frame(file: FileHeader, frame: Dataset, shared: Dataset) -> Plane:
    def find(group: str, keyword: str, count: int) -> tuple[float, ...] | None:
        for place in (frame, shared):
            for item in items(place, group):
                found = numbers(item, keyword, count)
                if found is not None:
                    return found
        return None

    return plane_of(
        file,
        find("PlanePositionSequence", "ImagePositionPatient", 3),
        find("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        find("PixelMeasuresSequence", "PixelSpacing", 2),
    )


def _tomography(file: FileHeader) -> list[Plane]:
    """Nuclear medicine gives the first slice's place, and the distance from slice to slice."""
    with suppress_warnings():
        header = header_of(file)
        detector = (items(header, "DetectorInformationSequence") or [Dataset()])[0]
        position = numbers(detector, "ImagePositionPatient", 3) or file.position
        orientation = numbers(detector, "ImageOrientationPatient", 6) or file.orientation
        step = file.between or number(header, "SliceThickness")
    if step is None:
        raise ReadError("reconstructed slices without a distance between them")
    first = plane_of(file, position, orientation, file.spacing)
    a, b = first.orientation[:3], first.orientation[3:]
    normal = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    places = [tuple(p + n * step * k for p, n in zip(first.position, normal, strict=True)) for k in range(file.frames)]
    return [plane_of(file, place, orientation, file.spacing) for place in places]


@dataclass(frozen=True)
class SeriesGeometry:
    """The planes of all files, in the order of files and frames, and the grid with the volumes that they make up.

    Attributes:
        is_plain: the converter can be given the files as they are: classic slices, numbered as it expects.
    """

    planes: list[Plane]
    grid: Grid
    is_plain: bool


def describe_series(files: Sequence[FileHeader], thickness: float | None) -> SeriesGeometry:
    """The planes that files describe, and the grid and volumes that they make up.

    Args:
        files: headers of one series, in order.
        thickness: of a slice, mm.

    Raises:
        ReadError: they are not one or several whole volumes.
    """
    each = [planes_and_attributes(file) for file in files]
    planes = [plane for of_file, _ in each for plane in of_file]
    if has_tiles(files[0]):
        if len({len(of_file) for of_file, _ in each}) > 1:
            raise ReadError("mosaics of different numbers of tiles")
        number = [(float(count),) for count, (of_file, _) in enumerate(each) for _ in of_file]
        attributes = [Attribute("file", APART, tuple(number))]
    elif files[0].frames > 1:
        attributes = attributes_of_frames([frame for _, frames in each for frame in frames])
    else:
        numbers = [file.instance for file in files]
        attributes = attributes_of_files([file.attributes for file in files])
        grid = stack(planes, thickness)
        grid = sort_into_volumes(grid, attributes, numbers, lambda plane: short_elements(files[plane]))
        return SeriesGeometry(planes, grid, is_plain(grid, numbers))
    return SeriesGeometry(planes, sort_into_volumes(stack(planes, thickness), attributes, range(len(planes))), False)
