"""What the headers of a series say that must come out: the planes, their grid, and which of them are one volume."""

from collections.abc import Sequence
from dataclasses import dataclass

from scanfoundry.datasets.readers.dicom.acquisitions import dealt, is_plain
from scanfoundry.datasets.readers.dicom.distinctions import APART, Attribute, attributes, of_frames
from scanfoundry.datasets.readers.dicom.elements import short_elements
from scanfoundry.datasets.readers.dicom.geometry import Grid, Plane, stack
from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.planes import described
from scanfoundry.datasets.readers.dicom.tiles import has_tiles
from scanfoundry.datasets.readers.scan import ReadError


@dataclass(frozen=True)
class Described:
    """The planes of all files, in the order of files and frames, and the grid with the volumes that they make up.

    is_plain  the converter can be given the files as they are: classic slices, numbered as it expects
    """

    planes: list[Plane]
    grid: Grid
    is_plain: bool


def described_by(files: Sequence[Survey], thickness: float | None) -> Described:
    """What `files` describe. ReadError where that is not one or several whole volumes. thickness: of a slice, mm."""
    each = [described(file) for file in files]
    planes = [plane for of_file, _ in each for plane in of_file]
    if has_tiles(files[0]):
        if len({len(of_file) for of_file, _ in each}) > 1:
            raise ReadError("mosaics of different numbers of tiles")
        number = [(float(count),) for count, (of_file, _) in enumerate(each) for _ in of_file]
        told = [Attribute("file", APART, tuple(number))]
    elif files[0].frames > 1:
        told = of_frames([frame for _, frames in each for frame in frames])
    else:
        numbers = [file.instance for file in files]
        told = attributes([file.told for file in files])
        grid = dealt(stack(planes, thickness), told, numbers, lambda plane: short_elements(files[plane]))
        return Described(planes, grid, is_plain(grid, numbers))
    return Described(planes, dealt(stack(planes, thickness), told, range(len(planes))), False)
