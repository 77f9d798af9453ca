"""A patch out of one scan, in one interpolation: voxels, label maps and boxes move along with the same window."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.configs.geometry import PositiveSize3D

Corners = npt.NDArray[np.float64]
KEPT_SHARE = 0.25  # a box of which less is left inside the patch is dropped


@dataclass(frozen=True)
class PatchWindow:
    """A patch's place in a scan: continuous position p = centre + matrix (q + warp(q) - size / 2) for the patch's q.

    Positions are in voxels with edges at whole numbers: voxel i covers [i, i + 1). Order D, H, W.

    Attributes:
        centre: (3,) of the patch in the scan.
        matrix: (3, 3) from steps in the patch to steps in the scan.
        size: of the patch.
        warp: (*size, 3) displacements, see `deformation`; points and boxes are not followed through it.
    """

    centre: npt.NDArray[np.float64]
    matrix: npt.NDArray[np.float64]
    size: PositiveSize3D
    warp: Tensor | None = None

    def to_patch(self, points: npt.NDArray) -> npt.NDArray:
        """Positions (N, 3) in the scan -> in the patch."""
        return (points - self.centre) @ np.linalg.inv(self.matrix).T + np.array(self.size) / 2

    def to_scan(self, points: npt.NDArray) -> npt.NDArray:
        """Positions (N, 3) in the patch -> in the scan."""
        return (points - np.array(self.size) / 2) @ self.matrix.T + self.centre


def identity_patch(shape: PositiveSize3D, size: PositiveSize3D) -> PatchWindow:
    """The patch in the middle of a scan, unturned: plain padding and cropping."""
    # Whole voxels, so that nothing is interpolated.
    centre = np.array([s / 2 + ((p - s) % 2) / 2 for s, p in zip(shape, size, strict=True)])
    return PatchWindow(centre, np.eye(3), size)


def extract(image: Tensor, window: PatchWindow, fill: float) -> Tensor:
    """The patch of a scan, linear.

    Args:
        image: (C, D, H, W).
        window: where the patch lies.
        fill: the value outside the scan.

    Returns:
        (C, *window.size).
    """
    low, high = _bounds(window, image.shape[1:])
    part = image[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]].float() - fill
    if min(part.shape) == 0:
        return torch.full((len(image), *window.size), fill)
    axes = [torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in window.size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # d h w 3
    if window.warp is not None:
        offsets += window.warp
    points = offsets @ torch.from_numpy(window.matrix).T + torch.from_numpy(window.centre - low)
    grid = (points / torch.tensor(part.shape[1:], dtype=torch.float64) * 2 - 1).flip(-1).float()
    return F.grid_sample(part[None], grid[None], padding_mode="zeros", align_corners=False)[0] + fill


def extract_labels(labels: npt.NDArray[np.uint8], window: PatchWindow) -> Tensor:
    """The patch of a label map: of each voxel the label with the largest share of it.

    Nearest neighbours would make every turned border a staircase, and a thin wall a broken one.

    Args:
        labels: (D, H, W).
        window: where the patch lies.

    Returns:
        (*window.size), 0 outside the map.
    """
    low, high = _bounds(window, labels.shape)
    part = np.ascontiguousarray(labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]])
    found = torch.zeros(window.size, dtype=torch.uint8)
    most, rest = torch.zeros(window.size), torch.ones(window.size)
    inside = replace(window, centre=window.centre - low)
    for value in np.unique(part[part > 0]):
        share = extract(torch.from_numpy(part == value)[None].float(), inside, 0.0)[0]
        found, most = torch.where(share > most, int(value), found), torch.maximum(share, most)
        rest -= share
    return torch.where(most > rest, found, 0)


def boxes_in_patch(boxes: Corners, window: PatchWindow) -> tuple[Corners, npt.NDArray[np.bool_]]:
    """Boxes as they stand in the patch: cut off at its border, dropped where under KEPT_SHARE of their volume is left.

    Args:
        boxes: (N, 6) d0 h0 w0 d1 h1 w1 in voxels of the scan.
        window: its matrix may mirror, zoom and exchange axes: under any other turn a box is no box.

    Returns:
        (n, 6) in voxels of the patch, and which of the boxes are in it (N,).
    """
    corners = np.stack([window.to_patch(boxes[:, :3]), window.to_patch(boxes[:, 3:])])
    low, high = corners.min(0), corners.max(0)
    inside = np.concatenate([np.clip(low, 0, window.size), np.clip(high, 0, window.size)], axis=1)
    kept = (inside[:, 3:] - inside[:, :3]).prod(1) >= KEPT_SHARE * (high - low).prod(1)
    return inside[kept], kept


def boxes_at_scan(boxes: Corners, window: PatchWindow) -> Corners:
    """Boxes (N, 6) of a patch where they stand in the scan: the inverse of `boxes_in_patch` where none is cut."""
    corners = np.stack([window.to_scan(boxes[:, :3]), window.to_scan(boxes[:, 3:])])
    return np.concatenate([corners.min(0), corners.max(0)], axis=1)


def _bounds(window: PatchWindow, shape: Sequence[int]) -> tuple[npt.NDArray, npt.NDArray]:
    """The part of the scan that a patch touches (with a voxel of margin), so that a big scan is not copied."""
    half = np.array(window.size) / 2
    if window.warp is not None:
        half = half + window.warp.abs().amax((0, 1, 2)).double().numpy()
    reach = np.abs(window.matrix) @ half + 1.5
    low = np.clip(np.floor(window.centre - reach), 0, np.array(shape)).astype(int)
    high = np.clip(np.ceil(window.centre + reach), 0, np.array(shape)).astype(int)
    return low, high
