"""Do the converted planes hold the pixels of the slices at their places? A sample, decoded a second time by pydicom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanforge.datasets.readers.dicom.decode import whole_dataset
from scanforge.datasets.readers.dicom.geometry import Grid
from scanforge.datasets.readers.dicom.plugin import register
from scanforge.datasets.readers.dicom.quiet import quiet
from scanforge.datasets.readers.dicom.values import number
from scanforge.datasets.readers.scan import ReadError


def refuse_misplaced(images: Sequence[Any], grid: Grid, slices: Sequence[Path], own_scale: bool) -> None:
    """ReadError where the first, middle or last plane of a volume in `images` is none of the slices given there.

    slices     the files in the order of the grid's planes; each may stand for one plane only
    own_scale  the maker has private slopes that the converter prefers: values may differ by a factor and an offset
    """
    for place in sorted({0, grid.shape[2] // 2, grid.shape[2] - 1}):
        left = [values_of(slices[member]) for member in grid.members[place]]
        for image in images:
            for volume in range(int(np.prod(image.shape[3:]))):
                plane = _plane(image, volume, place, grid)
                match = next((k for k, values in enumerate(left) if _same(plane, values, own_scale)), None)
                if match is None:
                    raise ReadError("dcm2niix puts other pixels into a slice than its file holds")
                left.pop(match)


def _plane(image: Any, volume: int, place: int, grid: Grid) -> NDArray:
    """The plane at a slice of the grid, (rows, columns) as the file has them."""
    x, y, z = (float(image.affine[:3, axis] @ grid.affine[:3, axis]) < 0 for axis in range(3))
    depth = grid.shape[2] - 1 - place if z else place
    found = image.dataobj[..., depth, volume] if len(image.shape) > 3 else image.dataobj[..., depth]
    plane = np.asarray(found, np.float64)
    plane = plane[::-1] if x else plane
    return (plane[:, ::-1] if y else plane).T


def values_of(path: Path) -> NDArray:
    """Pixels of a file as pydicom decodes them, times slope plus intercept. ReadError where it cannot."""
    pixels, slope, intercept = stored_of(path)
    return pixels * slope + intercept


def stored_of(path: Path) -> tuple[NDArray, float, float]:
    """(pixels of a file as stored, slope, intercept). ReadError where pydicom cannot decode it."""
    register()
    try:
        with quiet():
            dataset = whole_dataset(path)
            slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
            return dataset.pixel_array, 1.0 if slope is None else slope, intercept or 0.0
    except Exception as error:  # decoders raise whatever the damage makes them
        raise ReadError("pixels cannot be decoded") from error


def _same(plane: NDArray, values: NDArray, own_scale: bool) -> bool:
    if plane.shape != values.shape:
        return False
    if np.allclose(plane, values, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(values).max()))):
        return True
    if not own_scale or plane.std() == 0 or values.std() == 0:
        return False
    return bool(np.corrcoef(plane.ravel(), values.ravel())[0, 1] > 1 - 1e-6)
