"""Whether the converted planes hold the pixels of the slices, or of the tiles of a mosaic, at their places."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pydicom
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.conversion.slices import Slice
from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.values import suppress_warnings
from scanfoundry.datasets.readers.dicom.series.grid import Grid
from scanfoundry.datasets.readers.geometry import LPS_TO_RAS
from scanfoundry.datasets.readers.scan import ReadError

ROUNDING = 1e-5  # of the largest stored value times the slope: the converter computes in single precision


def match_volumes(
    images: Sequence[Any], grid: Grid, slices: Sequence[Slice], own_scale: bool
) -> list[tuple[Any, int, list[int]]]:
    """Find the slices of each converted volume by their pixels.

    Args:
        images: converted, as nibabel opens them.
        grid: of the series.
        slices: what was converted, one for each plane, in the order of the grid's planes.
        own_scale: the maker has private slopes that the converter prefers; values may differ by a factor and an offset.

    Returns:
        (image, number of the volume in it, number of the slice in each of its planes) for every volume.

    Raises:
        ReadError: a volume does not hold, plane by plane, slices that belong together.
    """
    left = [[several[volume] for several in grid.members] for volume in range(grid.volumes)]
    found, sums = [], []
    for image in images:
        for number in range(int(np.prod(image.shape[3:]))):
            planes = _Planes(image, number, grid, own_scale)
            match = next((volume for volume in left if planes.are(volume, slices)), None)
            if match is None:
                raise ReadError("dcm2niix puts other pixels into a slice than its file holds")
            left.remove(match)
            found.append((image, number, match[::-1] if planes.reversed else match))
            if grid.volumes > 1:
                sums.append(planes.checksums())
    if _are_doubled(sums):
        raise ReadError("mixed slices: one is there twice where another is missing")
    return found


def _are_doubled(sums: Sequence[Sequence[int | None]]) -> bool:
    """Whether volumes share some slices but not all. sums: of each volume, of each plane, None of a plain one."""
    places = [[one for one in place if one is not None] for place in zip(*sums, strict=True)]
    doubled = [len(set(place)) < len(place) for place in places if len(place) > 1]
    return any(doubled) and not all(doubled)


class _Planes:
    """The planes of one volume, as the files have them."""

    def __init__(self, image: Any, number: int, grid: Grid, own_scale: bool) -> None:
        x, y, z = (float(image.affine[:3, axis] @ grid.affine[:3, axis]) < 0 for axis in range(3))
        self.reversed, self._own_scale = z, own_scale
        self._slope, self._intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        stored = image.dataobj.get_unscaled()
        stored = stored[..., number] if len(image.shape) > 3 else stored
        self._stored = stored[:: -1 if x else 1, :: -1 if y else 1, :: -1 if z else 1].T  # (slices, rows, columns)

    def are(self, volume: Sequence[int], slices: Sequence[Slice]) -> bool:
        """Whether each plane holds its slice; the middle one first, which tells volumes apart."""
        middle = len(volume) // 2
        order = [middle, *range(middle), *range(middle + 1, len(volume))]
        return all(self._holds(self._stored[place], slices[volume[place]]) for place in order)

    def checksums(self) -> list[int | None]:
        """A checksum of every plane; None for one whose pixels are all the same."""
        return [None if (plane == plane[0, 0]).all() else crc32(plane.tobytes()) for plane in self._stored]

    def _holds(self, plane: NDArray, source: Slice) -> bool:
        if plane.shape != source.shape:
            return False
        raw = source.raw()
        if raw is not None and self._same(plane, raw, source):
            return True
        return self._same(plane, source.decoded(), source)  # bits beyond those stored are for a decoder to judge

    def _same(self, plane: NDArray, stored: NDArray, source: Slice) -> bool:
        rounding = ROUNDING * abs(source.slope)
        same_slope = abs(self._slope - source.slope) <= rounding
        same_scale = same_slope and abs(self._intercept - source.intercept) <= rounding + 1e-7 * abs(source.intercept)
        if np.array_equal(plane, stored) and (same_scale or self._own_scale):
            return True
        found = plane.astype(np.float64) * self._slope + self._intercept
        expected = stored * source.slope + source.intercept
        largest = float(np.abs(stored.astype(np.float64)).max())
        if (np.abs(found - expected) <= rounding * largest + 1e-7 * abs(source.intercept)).all():
            return True
        if not self._own_scale or found.std() == 0 or expected.std() == 0:
            return False
        return bool(np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 1 - 1e-6)


SIEMENS_SLICES = (0x0019, 0x100A)
UIH_SLICES = (0x0065, 0x1050)


def check_no_mosaic(image: Any, file: FileHeader) -> None:
    """ReadError where a converted volume does not fit the tiles, the number of slices or the place of its mosaic."""
    columns, rows, slices = (*image.shape[:3], 1, 1)[:3]
    if file.rows % rows or file.columns % columns or slices > (file.rows // rows) * (file.columns // columns):
        raise ReadError(f"dcm2niix cuts {rows}x{columns}x{slices} out of a {file.rows}x{file.columns} mosaic")
    if rows == file.rows and columns == file.columns:
        raise ReadError("mosaic whose slices cannot be told apart")
    declared = _slices(file)
    if declared not in (None, slices):
        raise ReadError(f"dcm2niix makes {slices} slices of a mosaic of {declared}")
    if file.position is None or file.orientation is None or file.spacing is None:
        raise ReadError("mosaic without position, orientation or pixel spacing")
    affine = LPS_TO_RAS @ image.affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / steps
    row, column = np.reshape(file.orientation, (2, 3))
    normal = np.cross(row, column)
    along = [abs(float(axes[:, i] @ axis)) for i, axis in enumerate((row, column, normal))]
    if min(along) < 1 - 1e-4 or not np.allclose(steps[:2], file.spacing[::-1], rtol=1e-3):
        raise ReadError("dcm2niix gives the mosaic another direction or spacing than its header does")
    if file.between is not None and file.between > 0 and abs(steps[2] - file.between) > 0.02 * file.between:
        raise ReadError("dcm2niix gives the mosaic another distance between slices than its header does")


def check_own_tiles(images: Sequence[Any], slices: Sequence[Slice]) -> None:
    """ReadError where the planes of a converted volume are not the tiles of one of the mosaics, one after the other."""
    left = [one.decoded() for one in slices]
    for image in images:
        columns, rows, depth = image.shape[:3]
        stored = image.dataobj.get_unscaled()
        for volume in range(int(np.prod(image.shape[3:]))):
            found = (stored[..., volume] if len(image.shape) > 3 else stored)[:, ::-1].T
            tiles = (_tiles(mosaic, rows, columns)[:depth] for mosaic in left)
            match = next((k for k, tile in enumerate(tiles) if _equal(found, tile) or _equal(found[::-1], tile)), None)
            if match is None:
                raise ReadError("dcm2niix puts other pixels into a slice than its mosaic holds")
            left.pop(match)


def _equal(planes: NDArray, tiles: NDArray) -> bool:
    return planes.shape == tiles.shape and bool((planes == tiles).all())


def _tiles(mosaic: NDArray, rows: int, columns: int) -> NDArray:
    """(tiles, rows, columns), row by row of tiles."""
    high, wide = mosaic.shape[0] // rows, mosaic.shape[1] // columns
    return mosaic.reshape(high, rows, wide, columns).swapaxes(1, 2).reshape(-1, rows, columns)


def _slices(file: FileHeader) -> int | None:
    tags = (SIEMENS_SLICES, UIH_SLICES)
    try:
        with suppress_warnings():
            header = pydicom.dcmread(file.path, stop_before_pixels=True, force=True, specific_tags=list(tags))
            return next((int(header[tag].value) for tag in tags if tag in header), None)
    except Exception:  # private elements hold what their maker likes; without the number the other checks remain
        return None
