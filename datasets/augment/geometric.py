"""Geometry: flips, quarter turns, affine and resized crop of each sample as one matrix.

Coordinates are voxel indices (d, h, w); a voxel reaches half a step to either side of its index. A matrix maps an
index of the view to an index of the crop that it was made of.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.augment.draw import Drawn

_TURN = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # a quarter turn: view (d, h, w) shows crop (d, w, -h)


@dataclass(frozen=True)
class Geometry:
    """Where the views of B samples come from.

    Attributes:
        matrices: (B, 4, 4) float64: index of the view to index of the crop.
        exact: (B,) bool: the window is cut out as it is; straight (B,) bool: it is resized; else it is turned, too.
        start: (B, 3) where the window begins, in voxels; side (B, 3) how long it is.
        flips: (B, 3) bool, of the window along D, H, W; turns (B,) quarter turns after that.
        size: of the views.
    """

    matrices: NDArray[np.float64]
    exact: NDArray[np.bool_]
    straight: NDArray[np.bool_]
    start: NDArray[np.float64]
    side: NDArray[np.float64]
    flips: NDArray[np.bool_]
    turns: NDArray[np.int64]
    size: Size3D


def plan(drawn: Drawn, crop: Size3D, size: Size3D) -> Geometry:
    """The geometry of views; never out of the plane where a crop is 2D.

    Args:
        drawn: for each sample.
        crop: (D, H, W) of the crops.
        size: (D, H, W) of the views.
    """
    flips = drawn.on["flip"][:, None] & (drawn.values["flip"] < 0.5)
    turns = np.where(drawn.on["quarter_turn"], 1 + (3 * drawn.values["quarter_turn"][:, 0]).astype(np.int64), 0)
    if size[1] != size[2]:
        turns = np.where(turns > 0, 2, 0)
    start, side = _windows(drawn, np.array(crop, float), np.array(size, float))
    moved = np.array([np.linalg.matrix_power(_TURN, turn) for turn in turns])
    moved = np.where(flips, -1, 1)[:, :, None] * moved
    linear, shift = _affine(drawn, crop)
    matrices = np.tile(np.eye(4), (len(turns), 1, 1))
    matrices[:, :3, :3] = linear @ ((side / np.array(size))[:, :, None] * moved)
    middle = start + (side - 1) / 2 + shift
    matrices[:, :3, 3] = middle - (matrices[:, :3, :3] @ ((np.array(size) - 1) / 2))
    affine, resized = drawn.on["affine"], drawn.on["crop"]
    return Geometry(matrices, ~(affine | resized), resized & ~affine, start, side, flips, turns, size)


def _windows(drawn: Drawn, crop: NDArray, size: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First voxel and sides (B, 3) of the windows that the views show, before any affine."""
    room = np.maximum(crop - size, 0)
    start = np.where(crop < size, -((size - crop) // 2), np.floor(drawn.place * (room + 1)))
    fraction, plane, depth = drawn.values["crop"].T
    stretch = np.stack([np.zeros_like(plane), plane / 2, -plane / 2], 1)
    dimensions = 2
    if crop[0] > 1:
        dimensions = 3
        stretch += depth[:, None] * np.array([2 / 3, -1 / 3, -1 / 3])
    on = drawn.on["crop"]
    sides = np.where(on, fraction, 1.0)[:, None] ** (1 / dimensions) * np.exp(stretch)
    side = np.minimum(sides, 1.0) * crop
    if crop[0] == 1:
        side[:, 0] = 1.0
    return (
        np.where(on[:, None], drawn.place * (crop - side), start),
        np.where(on[:, None], side, size),
    )


def _affine(drawn: Drawn, crop: Size3D) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Linear part (B, 3, 3) and shift (B, 3) in voxels of the affine, identity where it is off."""
    values = np.where(drawn.on["affine"][:, None], drawn.values["affine"], 0.0)
    turn, tilt_h, tilt_w, scale = values[:, :4].T
    stretch, translation = values[:, 4:7].copy(), values[:, 7:].copy()
    turned = rotation(turn, 1, 2)
    if crop[0] == 1:
        stretch[:, 0] = -scale
        translation[:, 0] = 0.0
    else:
        flat = min(1.0, crop[0] / max(crop[1:]))
        turned = turned @ rotation(flat * tilt_h, 0, 2) @ rotation(flat * tilt_w, 0, 1)
    return turned * np.exp(-scale[:, None] - stretch)[:, None, :], translation * np.array(crop)


def rotation(angle: NDArray[np.float64], a: int, b: int) -> NDArray[np.float64]:
    """Rotations in the plane of two axes.

    Args:
        angle: (B,) in radians.
        a, b: the axes, 0 to 2.

    Returns:
        (B, 3, 3).
    """
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    matrix[:, a, a] = matrix[:, b, b] = np.cos(angle)
    matrix[:, a, b], matrix[:, b, a] = -np.sin(angle), np.sin(angle)
    return matrix
