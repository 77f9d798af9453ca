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
class Window:
    """A patch's place in a scan: continuous position p = centre + matrix (q + warp(q) - size / 2) for the patch's q.

    Positions are in voxels with edges at whole numbers: voxel i covers [i, i + 1). Order D, H, W.
    """

    centre: npt.NDArray[np.float64]
    matrix: npt.NDArray[np.float64]
    size: PositiveSize3D
    warp: Tensor | None = None  # (*size, 3), see `deformation`; points and boxes are not followed through it

    def to_patch(self, points: npt.NDArray) -> npt.NDArray:
        """Positions (N, 3) in the scan -> in the patch."""
        return (points - self.centre) @ np.linalg.inv(self.matrix).T + np.array(self.size) / 2

    def to_scan(self, points: npt.NDArray) -> npt.NDArray:
        """Positions (N, 3) in the patch -> in the scan."""
        return (points - np.array(self.size) / 2) @ self.matrix.T + self.centre


def identity_patch(shape: PositiveSize3D, size: PositiveSize3D) -> Window:
    """The patch in the middle of a scan, unturned: plain padding and cropping."""
    # Whole voxels, so that nothing is interpolated.
    centre = np.array([s / 2 + ((p - s) % 2) / 2 for s, p in zip(shape, size, strict=True)])
    return Window(centre, np.eye(3), size)


def extract(image: Tensor, window: Window, fill: float) -> Tensor:
    """The patch (C, *window.size) of a scan (C, D, H, W), linear; `fill` outside the scan."""
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


def extract_labels(labels: npt.NDArray[np.uint8], window: Window) -> Tensor:
    """The patch of a label map (D, H, W): of each voxel the label with the largest share of it; 0 outside the map.

    Nearest neighbours would make every turned border a staircase, and a thin wall a broken one.
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


def boxes_in_patch(boxes: Corners, window: Window) -> tuple[Corners, npt.NDArray[np.bool_]]:
    """Boxes (N, 6) d0 h0 w0 d1 h1 w1 as they stand in the patch, and which of them are in it (N,).

    Cut off at the patch's border; dropped where under KEPT_SHARE of their volume is left. The window's matrix may
    mirror, zoom and exchange axes: under any other turn a box is no box.
    """
    corners = np.stack([window.to_patch(boxes[:, :3]), window.to_patch(boxes[:, 3:])])
    low, high = corners.min(0), corners.max(0)
    inside = np.concatenate([np.clip(low, 0, window.size), np.clip(high, 0, window.size)], axis=1)
    kept = (inside[:, 3:] - inside[:, :3]).prod(1) >= KEPT_SHARE * (high - low).prod(1)
    return inside[kept], kept


def boxes_at_scan(boxes: Corners, window: Window) -> Corners:
    """Boxes (N, 6) of a patch where they stand in the scan: the inverse of `boxes_in_patch` where none is cut."""
    corners = np.stack([window.to_scan(boxes[:, :3]), window.to_scan(boxes[:, 3:])])
    return np.concatenate([corners.min(0), corners.max(0)], axis=1)


def _bounds(window: Window, shape: Sequence[int]) -> tuple[npt.NDArray, npt.NDArray]:
    """The part of the scan that a patch touches (with a voxel of margin), so that a big scan is not copied."""
    half = np.array(window.size) / 2
    if window.warp is not None:
        half = half + window.warp.abs().amax((0, 1, 2)).double().numpy()
    reach = np.abs(window.matrix) @ half + 1.5
    low = np.clip(np.floor(window.centre - reach), 0, np.array(shape)).astype(int)
    high = np.clip(np.ceil(window.centre + reach), 0, np.array(shape)).astype(int)
    return low, high
