"""Whether planes make up a volume, and where it lies: from the headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.geometry import LPS_TO_RAS
from scanfoundry.datasets.readers.scan import ReadError

SAME_PLACE = 0.01  # mm: planes nearer than this repeat a position
SAME_DIRECTION = 2e-3  # of direction cosines; headers round them to some five digits
# Positions are written with one to six decimals. A plane may lie off the regular grid by the rounding of one decimal
# (a line through numbers rounded by 0.05 mm passes them by up to 0.08; at most a tenth of a step) or by a hundredth of
# a step; what is beyond is another scan.
ROUNDING = 0.08
ROUNDING_SHARE = 0.1
JITTER_SHARE = 0.01


@dataclass(frozen=True)
class Plane:
    """One slice: position of its first pixel's centre (mm, LPS), directions of a row and of a column, pixel spacing."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]  # between rows, between columns, mm
    rows: int
    columns: int


@dataclass(frozen=True)
class Grid:
    """A regular stack: `shape` (columns, rows, slices), how often every position occurs, and its place.

    Attributes:
        affine: (4, 4) from (column, row, slice) to RAS mm, square: the third column is the normal's part of the step.
        jitter: mm by which a plane lies off that grid at most, along the normal.
        lean: mm by which the stack leans in the plane over its whole height; rounding where there is no shear.
        shear: rows by which each slice is shifted against the one before (gantry tilt); 0 where slices are square.
        members: numbers of the planes at each position, in the order of the slices.
    """

    shape: tuple[int, int, int]
    volumes: int
    affine: NDArray[np.float64]
    jitter: float
    lean: float
    shear: float
    members: tuple[tuple[int, ...], ...]


def stack(planes: Sequence[Plane], thickness: float | None = None) -> Grid:
    """The grid that planes fill.

    Args:
        planes: of one series, in any order.
        thickness: of a slice, mm; it gives a single slice its depth.

    Raises:
        ReadError: the planes are not one or several whole volumes, with the reason.
    """
    first = planes[0]
    _same_frame(planes)
    row, column = (np.asarray(first.orientation[i : i + 3]) for i in (0, 3))
    normal = np.cross(row, column)
    positions = np.asarray([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    height = (positions @ normal)[order]
    starts = np.flatnonzero(np.diff(height, prepend=-np.inf) > SAME_PLACE)
    counts = np.diff(np.append(starts, len(planes)))
    groups = np.split(order, starts[1:])
    for group in groups:
        if np.ptp(positions[group], axis=0).max() > max(SAME_PLACE, 0.01 * min(first.spacing)):
            raise ReadError("slices at the same height lie side by side")
    if counts.min() != counts.max():
        raise ReadError(f"{len(planes)} slices at {len(starts)} positions, {counts.min()} to {counts.max()} at each")
    origins = positions[[group[0] for group in groups]]
    step, jitter = _step(origins, normal, height[starts], thickness)
    shear = _shear(step, normal, column, row, first.spacing, len(origins))
    square = normal * (step @ normal)
    lean = float(np.linalg.norm(step - square)) * (len(origins) - 1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * first.spacing[1], column * first.spacing[0], square], axis=1)
    affine[:3, 3] = origins[0]
    shape = (first.columns, first.rows, len(origins))
    members = tuple(tuple(int(number) for number in group) for group in groups)
    return Grid(shape, int(counts[0]), LPS_TO_RAS @ affine, jitter, lean, shear, members)


def _same_frame(planes: Sequence[Plane]) -> None:
    first = planes[0]
    if len({(plane.rows, plane.columns) for plane in planes}) > 1:
        raise ReadError("slices of different sizes")
    if not np.allclose([plane.spacing for plane in planes], first.spacing, rtol=1e-4, atol=1e-5):
        raise ReadError("slices of different pixel spacing")
    if min(first.spacing) <= 0:
        raise ReadError("pixel spacing of zero or less")
    if not np.allclose([plane.orientation for plane in planes], first.orientation, rtol=0, atol=SAME_DIRECTION):
        raise ReadError("slices of different orientations")
    axes = np.reshape(first.orientation, (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=SAME_DIRECTION):
        raise ReadError("image orientation is not two perpendicular unit vectors")


def _step(
    origins: NDArray[np.float64], normal: NDArray[np.float64], height: NDArray[np.float64], thickness: float | None
) -> tuple[NDArray[np.float64], float]:
    """The step from slice to slice (mm, LPS) and how far a slice lies off the grid that it spans."""
    if len(origins) == 1:
        return normal * (thickness if thickness is not None and thickness > 0 else 1.0), 0.0
    gaps = np.diff(height)
    typical = float(np.median(gaps))
    tolerance = max(min(ROUNDING, ROUNDING_SHARE * typical), JITTER_SHARE * typical)
    places = np.arange(len(origins)) - (len(origins) - 1) / 2
    step = places @ origins / (places @ places)
    off = origins - origins.mean(axis=0) - places[:, None] * step
    jitter = float(np.abs(off @ normal).max())
    if np.abs(gaps - step @ normal).max() > 2 * tolerance or jitter > tolerance:
        raise ReadError(_why_irregular(gaps, typical, tolerance))
    aside = float(np.linalg.norm(off, axis=1).max())
    if aside > 2 * tolerance:
        raise ReadError(f"slices do not lie on a line: up to {aside:.2f} mm off")
    return step, jitter


def _why_irregular(gaps: NDArray[np.float64], typical: float, tolerance: float) -> str:
    steps = np.round(gaps / typical)
    if steps.max() > 1 and steps.min() == 1 and (np.abs(gaps - steps * typical) <= 2 * tolerance * steps).all():
        missing = int(steps.sum()) - len(gaps)
        return f"{missing} slices missing, or a change of spacing: steps of {gaps.min():.2f} to {gaps.max():.2f} mm"
    return f"slice spacing varies from {gaps.min():.2f} to {gaps.max():.2f} mm"


def _shear(
    step: NDArray[np.float64],
    normal: NDArray[np.float64],
    column: NDArray[np.float64],
    row: NDArray[np.float64],
    spacing: Sequence[float],
    slices: int,
) -> float:
    """Rows by which each slice is shifted; ReadError where the stack leans along the rows, as no gantry does."""
    if slices == 1:
        return 0.0
    sideways, along = float(step @ row), float(step @ column)
    # A drift below a fifth of a pixel over the whole stack is rounding of positions and cosines.
    if abs(sideways) * (slices - 1) > max(0.2 * spacing[1], 0.002 * slices * float(step @ normal)):
        raise ReadError("slices are stacked askew along their rows")
    if abs(along) * (slices - 1) <= max(0.2 * spacing[0], 0.002 * slices * float(step @ normal)):
        return 0.0
    return along / spacing[0]
