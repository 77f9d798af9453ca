"""Mosaics: what dcm2niix cuts out of the tiles is held against what the header says of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.slices import Slice
from scanfoundry.datasets.readers.dicom.suppress_warnings import quiet
from scanfoundry.datasets.readers.geometry import LPS_TO_RAS
from scanfoundry.datasets.readers.scan import ReadError

SIEMENS_SLICES = (0x0019, 0x100A)
UIH_SLICES = (0x0065, 0x1050)


def check_no_mosaic(image: Any, file: Survey) -> None:
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
            match = next((k for k, tile in enumerate(tiles) if _same(found, tile) or _same(found[::-1], tile)), None)
            if match is None:
                raise ReadError("dcm2niix puts other pixels into a slice than its mosaic holds")
            left.pop(match)


def _same(planes: NDArray, tiles: NDArray) -> bool:
    return planes.shape == tiles.shape and bool((planes == tiles).all())


def _tiles(mosaic: NDArray, rows: int, columns: int) -> NDArray:
    """(tiles, rows, columns), row by row of tiles."""
    high, wide = mosaic.shape[0] // rows, mosaic.shape[1] // columns
    return mosaic.reshape(high, rows, wide, columns).swapaxes(1, 2).reshape(-1, rows, columns)


def _slices(file: Survey) -> int | None:
    tags = (SIEMENS_SLICES, UIH_SLICES)
    try:
        with quiet():
            header = pydicom.dcmread(file.path, stop_before_pixels=True, force=True, specific_tags=list(tags))
            return next((int(header[tag].value) for tag in tags if tag in header), None)
    except Exception:  # private elements hold what their maker likes; without the number the other checks remain
        return None
