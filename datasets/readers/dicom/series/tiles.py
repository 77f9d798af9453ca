"""United Imaging's vframes: the slices of a volume as tiles of one plane, with a position for each."""

import math
from dataclasses import replace

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.values import convert_SQ

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.values import numbers, suppress_warnings
from scanfoundry.datasets.readers.dicom.series.grid import Plane
from scanfoundry.datasets.readers.scan import ReadError

TILE_COUNT, TILES = Tag(0x0065, 0x1050), Tag(0x0065, 0x1051)


def has_tiles(file: FileHeader) -> bool:
    """United Imaging's vframes: mosaics without a position of their own, which give one for each tile."""
    return "VFRAME" in file.image_type and file.position is None


def tiles_of(file: FileHeader) -> list[Plane]:
    """Tiles lie row by row, in ceil(sqrt(n)) columns and as many rows as they need."""
    with suppress_warnings():
        header = header_of(file)
        tiles = _private_items(header)
        positions = [numbers(tile, "ImagePositionPatient", 3) for tile in tiles]
        turned = numbers(header, "ImageOrientationPatient", 6)
        declared = _private_number(header, TILE_COUNT)
    if not positions or (declared is not None and declared != len(positions)):
        raise ReadError("tiles whose number or positions are not given")
    high, wide = tile_layout(len(positions))
    if file.rows % high or file.columns % wide:
        raise ReadError(f"{len(positions)} tiles do not fit into {file.rows}x{file.columns} pixels")
    whole = [plane_of(file, position, turned or file.orientation, file.spacing) for position in positions]
    return [replace(plane, rows=file.rows // high, columns=file.columns // wide) for plane in whole]


def _private_items(header: Dataset) -> list[Dataset]:
    """Items of the tiles' sequence; [] where there are none. Files of implicit VR do not say that it is a sequence."""
    try:
        found = header[TILES].value
        found = convert_SQ(found, True, True) if isinstance(found, bytes) else found
        return [tile for tile in found if isinstance(tile, Dataset)]
    except Exception:  # private elements hold what their maker likes
        return []


def _private_number(header: Dataset, tag: BaseTag) -> int | None:
    try:
        found = header[tag].value
        return int(float(found.decode("ascii") if isinstance(found, bytes) else found))
    except Exception:  # as above
        return None


def tile_layout(count: int) -> tuple[int, int]:
    """(rows, columns) of tiles that `count` of them are laid out in."""
    wide = math.isqrt(count - 1) + 1
    return -(-count // wide), wide


def plane_of(
    file: FileHeader,
    position: tuple[float, ...] | None,
    orientation: tuple[float, ...] | None,
    spacing: tuple[float, ...] | None,
) -> Plane:
    if position is None or orientation is None:
        raise ReadError("slices without position or orientation")
    if spacing is None:
        raise ReadError("slices without pixel spacing")
    return Plane(position, orientation, spacing, file.rows, file.columns)


def header_of(file: FileHeader) -> Dataset:
    try:
        return pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
    except Exception as error:  # whatever damage makes pydicom raise
        raise ReadError("damaged DICOM header") from error
