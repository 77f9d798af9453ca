"""Whether a converted volume lies where its headers put it, and where a straightened one lies.

dcm2niix straightens the slices of a tilted CT, and its result is recomputed before it is believed. A tilt is no reason
to refuse a scan: head CTs of older scanners are tilted as a rule, and masks drawn on converted scans lie on just this
grid. It is the one place where voxels are interpolated, linearly along the columns, by less than a row. The affine is
ours: of tilts to one side dcm2niix (1.0.20260724) places the origin some millimetres off.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.series.grid import Grid
from scanfoundry.datasets.readers.scan import ReadError

AGREEMENT = 1e-3  # mm between our corners of a volume and the converter's


def checked_affine(affine: NDArray[np.float64], shape: Sequence[int], grid: Grid) -> NDArray[np.float64] | None:
    """The affine of a converted volume, compared with the headers.

    The converter measures the step between two slices, whose rounding grows over the stack: there the affine of the
    grid is returned.

    Args:
        affine: of the converted volume.
        shape: of it.
        grid: of the series.

    Returns:
        `affine`, or that of the grid with axes turned like it; None where the two disagree.
    """
    if tuple(shape) != grid.shape:
        return None
    turned = turn_like(affine, grid.affine, grid.shape)
    apart = corners_apart(affine, turned, shape)
    if apart <= AGREEMENT + grid.lean:
        return affine
    return turned if apart <= AGREEMENT + grid.lean + 2 * grid.jitter * grid.shape[2] else None


def turn_like(affine: NDArray[np.float64], ours: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """`ours` with those axes reversed that `affine` has the other way round."""
    turned = ours.copy()
    for axis in range(3):
        if affine[:3, axis] @ turned[:3, axis] < 0:
            turned[:3, 3] += turned[:3, axis] * (shape[axis] - 1)
            turned[:3, axis] *= -1
    return turned


def corners_apart(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """The largest distance in mm between a corner of the volume under `one` affine and under the `other`."""
    corners = np.stack([*np.meshgrid(*[(0, size - 1) for size in shape[:3]]), np.ones((2, 2, 2))]).reshape(4, -1)
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


ROUNDING = 2.0  # stored values: the converter cuts fractions off, and measures the tilt itself


def straightened(
    grid: Grid, images: Sequence[Any], paths: Sequence[Path]
) -> list[tuple[Any, int, NDArray[np.float64]]]:
    """The straightened volume of a tilted CT.

    Args:
        grid: of the series, with its shear.
        images: the slices as stored, converted.
        paths: of converted files that the converter has straightened.

    Returns:
        (image, 0, affine).

    Raises:
        ReadError: the straightened slices are not the stored ones, moved as the tilt demands.
    """
    if len(images) != 1 or len(images[0].shape) != 3 or len(paths) != 1:
        raise ReadError("gantry tilt in a series of several volumes")
    image = nib.Nifti1Image.from_filename(paths[0])
    theirs = np.asarray(image.affine, np.float64)
    leaning = grid.affine.copy()
    leaning[:3, 2] += leaning[:3, 1] * grid.shear
    leaning = turn_like(theirs, leaning, grid.shape)
    reach = abs(grid.shear) * (grid.shape[2] - 1)
    first, last = _shifts(np.asanyarray(images[0].dataobj), np.asanyarray(image.dataobj), reach)
    # Row j of slice k as stored is row j + first + k * each of the straight slice.
    each = (last - first) / (grid.shape[2] - 1)
    affine = leaning.copy()
    affine[:3, 2] -= leaning[:3, 1] * each
    affine[:3, 3] -= leaning[:3, 1] * first
    if not np.allclose(affine[:3, :3], theirs[:3, :3], rtol=0, atol=1e-3):
        raise ReadError("dcm2niix straightens the slices to other directions than their headers give")
    return [(image, 0, affine)]


def _shifts(stored: NDArray, straight: NDArray, reach: float) -> tuple[float, float]:
    """Rows by which `straight` holds the first and the last slice of `stored` shifted, both (x, y, z)."""
    if straight.shape[::2] != stored.shape[::2] or not reach <= straight.shape[1] - stored.shape[1] + 1 <= reach + 3:
        raise ReadError("dcm2niix straightens the slices to another size than their tilt")
    slices = stored.shape[2]
    for first, last in ((0.0, reach), (reach, 0.0)):
        shifts = np.linspace(first, last, slices)
        if all(_like(stored[..., k], straight[..., k], shifts[k]) for k in range(slices)):
            return first, last
    raise ReadError("dcm2niix straightens the slices by another shift than their tilt")


def _like(stored: NDArray, straight: NDArray, shift: float) -> bool:
    """Whether (x, y) `straight` is `stored` moved by `shift` rows with linear interpolation, within their overlap."""
    whole, part = int(np.floor(shift)), shift - np.floor(shift)
    expected = stored[:, 1:] * (1 - part) + stored[:, :-1] * part  # row j of `stored` and j - 1 meet at j + shift
    found = straight[:, whole + 1 : whole + stored.shape[1]]
    if found.shape != expected.shape:
        return False
    contrast = np.abs(np.diff(stored.astype(np.float64), axis=1))
    return bool((np.abs(found - expected) <= ROUNDING + 0.02 * contrast).all())
