"""Distances between the surfaces of two label maps: surface Dice (NSD) and the 95th percentile (HD95), in mm.

A surface is the voxels of a mask with a face on its outside (the scan's border counts as outside); its points are
their centres, one each, as in MONAI without sub-voxels. In a scan of depth 1 it is the contour.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects
from scipy.spatial import cKDTree

from scanfoundry.configs.geometry import Spacing3D

Points = npt.NDArray[np.int_]  # (N, axes) voxels
TREE_POINTS = 1_000_000  # a surface of more points is noise all over the scan: a distance map is faster then


class SurfaceScores(NamedTuple):
    """Of one class; nan where neither mask has a voxel."""

    nsd: float  # 0..1, higher is better
    hd95: float  # mm, lower is better


def surface_scores(
    prediction: npt.NDArray, truth: npt.NDArray, n_classes: int, spacing: Spacing3D, tolerance: float
) -> list[SurfaceScores]:
    """Scores of each foreground class 1..n_classes between two integer label maps (D, H, W); spacing, tolerance in mm.

    NSD (Nikolov et al. 2021): share of the points of both surfaces that lie within `tolerance` of the other surface.
    HD95: the larger one of the two directed 95th percentiles.

    Empty masks. Both empty: nan, left out of every mean. One of them empty: NSD is 0, and HD95 the diagonal of the
    scan, the largest distance that it could hold. It is infinite by definition; leaving it out, as is often done,
    would pay for predicting nothing wherever a case is hard.

    Raises ValueError where the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {truth.shape}")
    step = np.array(spacing, float)
    diagonal = float(np.linalg.norm((np.array(truth.shape) - 1) * step))
    axes = tuple(axis for axis, size in enumerate(truth.shape) if size == 1)
    kept = [axis for axis in range(truth.ndim) if axis not in axes]
    maps = [np.squeeze(labels, axes) for labels in (prediction, truth)]
    if not kept:
        maps, kept = [labels.reshape(1) for labels in maps], [0]
    parts = [find_objects(labels, n_classes) for labels in maps]
    scores = []
    for k in range(n_classes):
        boxes = [found[k] for found in parts]
        points = [_surface(labels, box, k + 1) for labels, box in zip(maps, boxes, strict=True) if box is not None]
        scores.append(_scores(points, step[kept], tolerance, diagonal))
    return scores


def distances(first: Points, second: Points, step: npt.NDArray) -> npt.NDArray[np.float64]:
    """(N, axes), (M, axes) voxels and the spacing (axes,) in mm -> (N,) mm from each of `first` to the nearest of
    `second`."""
    if max(len(first), len(second)) <= TREE_POINTS:
        return cKDTree(second * step).query(first * step)[0]
    low = np.minimum(first.min(0), second.min(0))
    high = np.maximum(first.max(0), second.max(0)) + 1
    away = np.ones(high - low, bool)
    away[tuple((second - low).T)] = False
    return distance_transform_edt(away, sampling=step)[tuple((first - low).T)]


def _surface(labels: npt.NDArray, box: tuple[slice, ...], label: int) -> Points:
    """The voxels of the surface; `box` holds the whole mask."""
    mask = labels[box] == label
    inner = binary_erosion(mask)  # outside of the array counts as empty
    return np.argwhere(mask & ~inner) + np.array([part.start for part in box])


def _scores(points: list[Points], step: npt.NDArray, tolerance: float, diagonal: float) -> SurfaceScores:
    if not points:
        return SurfaceScores(np.nan, np.nan)
    if len(points) == 1:
        return SurfaceScores(0.0, diagonal)
    first, second = points
    apart = [distances(first, second, step), distances(second, first, step)]
    within = sum(int((distance <= tolerance).sum()) for distance in apart)
    hd95 = max(float(np.percentile(distance, 95)) for distance in apart)
    return SurfaceScores(within / sum(map(len, apart)), hd95)
