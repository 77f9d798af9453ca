"""The planes of a file: one of a classic slice, one per frame of an enhanced or a tomographic object, one per tile."""

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from scanfoundry.datasets.readers.dicom.distinctions import Value, values_in
from scanfoundry.datasets.readers.dicom.geometry import Plane
from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.kinds import NM
from scanfoundry.datasets.readers.dicom.suppress_warnings import quiet
from scanfoundry.datasets.readers.dicom.tiles import has_tiles, header_of, plane_of, tiles_of
from scanfoundry.datasets.readers.dicom.values import items, number, numbers, value
from scanfoundry.datasets.readers.scan import ReadError

# InStackPositionNumber, ImagePositionPatient, SliceLocation, ImagePositionVolume
_IN_SPACE = frozenset((Tag(0x0020, 0x9057), Tag(0x0020, 0x0032), Tag(0x0020, 0x1041), Tag(0x0020, 0x9301)))


def is_mosaic(file: Survey) -> bool:
    """Siemens mosaics and United Imaging's vframes: the slices of a volume lie side by side in one plane."""
    return "MOSAIC" in file.image_type or "VFRAME" in file.image_type


def planes_of(file: Survey) -> list[Plane]:
    """The planes of one file in the order of its frames or tiles. ReadError where their place is not given."""
    return described(file)[0]


def described(file: Survey) -> tuple[list[Plane], list[dict[str, Value]]]:
    """The planes, and of each frame of an enhanced object the attributes that may tell acquisitions apart."""
    if has_tiles(file):
        return tiles_of(file), []
    if file.functional_groups:
        return _enhanced(file)
    return _classic(file), []


def _classic(file: Survey) -> list[Plane]:
    if file.sop_class == NM:
        return _tomography(file)
    if file.frames != 1:
        raise ReadError("several frames without a position each")
    return [plane_of(file, file.position, file.orientation, file.spacing)]


def _enhanced(file: Survey) -> tuple[list[Plane], list[dict[str, Value]]]:
    with quiet():
        header = header_of(file)
        shared = (items(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
        frames = items(header, "PerFrameFunctionalGroupsSequence")
        planes = [_frame(file, frame, shared) for frame in frames]
        told = [values_in(frame) | _dimensions(header, frame) for frame in frames]
    if len(planes) != file.frames:
        raise ReadError(f"{file.frames} frames declared, {len(planes)} described")
    return planes, told


def _dimensions(header: Dataset, frame: Dataset) -> dict[str, Value]:
    """The frame's place along the object's dimensions, but for those in space. A damaged one says nothing."""
    pointers = [value(one, "DimensionIndexPointer") for one in items(header, "DimensionIndexSequence")]
    places = [numbers(one, "DimensionIndexValues", len(pointers)) for one in items(frame, "FrameContentSequence")]
    found = next((place for place in places if place is not None), ())
    named = zip(pointers, found, strict=False)
    return {f"dimension {pointer}": (place,) for pointer, place in named if pointer not in _IN_SPACE}


def _frame(file: Survey, frame: Dataset, shared: Dataset) -> Plane:
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


def _tomography(file: Survey) -> list[Plane]:
    """Nuclear medicine gives the first slice's place, and the distance from slice to slice."""
    with quiet():
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
