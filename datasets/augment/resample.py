"""Views by their geometry: cut out, resized, or interpolated once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.augment.geometric import Geometry
from scanfoundry.datasets.augment.smooth import Operators, gaussian, smoothed, through
from scanfoundry.datasets.crop import overlap
from scanfoundry.datasets.device import to_device

_COARSE = 1.3  # steps of more voxels than this are low-passed first, against aliasing
_EDGE = 1e-5
_TOUCHED = 1 - 1e-3  # share of valid voxels in an interpolation, up to rounding


def move(
    voxels: torch.Tensor, valid: torch.Tensor, full: NDArray[np.bool_], low: torch.Tensor, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor]:
    """The views of a batch, as new tensors.

    A voxel of a view is valid where it lies in the crop and every voxel that it is interpolated from is valid.

    Args:
        voxels: (B, C, D, H, W).
        valid: (B, 1, D, H, W).
        full: (B,) bool, valid is True all over a sample.
        low: (B, 1, 1, 1, 1), the value of what is not valid.
        geometry: where the views lie.

    Returns:
        The views (B, C, *size) and their valid (B, 1, *size).
    """
    out = low.expand(-1, voxels.shape[1], *geometry.size).clone(memory_format=torch.contiguous_format)
    seen = torch.zeros((len(voxels), 1, *geometry.size), dtype=torch.bool, device=voxels.device)
    for number in np.flatnonzero(geometry.exact).tolist():
        _cut(voxels[number], out[number], geometry, number)
        _cut(valid[number], seen[number], geometry, number)
    # On a CPU three matrix products cost a third of a general interpolation in 3D; in 2D two cost more than it.
    straight = geometry.straight & (voxels.shape[2] > 1)  # as `stays_complete` takes it
    for kind, resample in ((straight, _resize), (~straight & ~geometry.exact, _turn)):
        for complete in (True, False):
            chosen = np.flatnonzero(kind & (full == complete))
            if not chosen.size:
                continue
            rows = to_device(chosen, voxels.device)
            mask = None if complete else valid[rows]
            source = _low_passed(voxels[rows], mask, geometry.matrices[chosen])
            values, inside = resample(source, mask, geometry, chosen)
            out[rows] = torch.where(inside, values, low[rows])
            seen[rows] = inside
    return out, seen


def _cut(source: torch.Tensor, view: torch.Tensor, geometry: Geometry, number: int) -> None:
    """Writes one sample's window as it is into its view (C, D, H, W)."""
    first = [int(index) for index in geometry.start[number]]
    of_source, of_view = overlap((first[0], first[1], first[2]), _triple(source), geometry.size)
    window = view.clone()
    window[(..., *of_view)] = source[(..., *of_source)]
    view.copy_(_moved(window, geometry, number))


def _moved(window: torch.Tensor, geometry: Geometry, number: int) -> torch.Tensor:
    """One sample's window (C, D, H, W), flipped and turned."""
    axes = [axis - 3 for axis in np.flatnonzero(geometry.flips[number]).tolist()]
    return torch.rot90(window.flip(axes), int(geometry.turns[number]), (-2, -1))


def _resize(
    source: torch.Tensor, mask: torch.Tensor | None, geometry: Geometry, chosen: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (n, C, *size) of windows that lie along the axes, and whether each voxel is valid (n, 1, *size)."""
    shape = _triple(source)
    operators: Operators = [
        _interpolation(geometry.start[chosen, axis], geometry.side[chosen, axis], shape[axis], size, source.device)
        for axis, size in enumerate(geometry.size)
    ]

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        windows = through(tensor, operators)
        return torch.stack([_moved(window, geometry, number) for window, number in zip(windows, chosen, strict=True)])

    values = resized(source)
    if mask is None:
        return values, torch.ones_like(values[:, :1], dtype=torch.bool)
    return values, resized(mask.to(source.dtype)) > _TOUCHED


def _interpolation(
    start: NDArray[np.float64], side: NDArray[np.float64], length: int, size: int, device: torch.device
) -> torch.Tensor:
    """Linear interpolation (n, size, length) of a window along one axis."""
    place = start[:, None] + (np.arange(size) + 0.5) * (side / size)[:, None] - 0.5
    weight = 1 - np.abs(place.clip(0, length - 1)[:, :, None] - np.arange(length))
    return to_device(weight.clip(0), device, torch.float32)


def _turn(
    source: torch.Tensor, mask: torch.Tensor | None, geometry: Geometry, chosen: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (n, C, *size) by the matrices, and whether each voxel is valid (n, 1, *size)."""
    grid = _grid(geometry.matrices[chosen], _triple(source), geometry.size, source.device)
    inside = _inside(grid)
    if mask is not None:
        inside &= _sample(mask.to(source.dtype), grid) > _TOUCHED
    return _sample(source, grid), inside


def _triple(tensor: torch.Tensor) -> Size3D:
    depth, height, width = tensor.shape[-3:]
    return depth, height, width


def _low_passed(voxels: torch.Tensor, mask: torch.Tensor | None, matrices: NDArray[np.float64]) -> torch.Tensor:
    step = np.linalg.norm(matrices[:, :3, :3], axis=2)  # of neighbours in the view, along each axis of the crop
    sigma = np.where(step > _COARSE, (step - 1) / 2, 0.0)
    return smoothed(voxels, mask, gaussian(sigma, _triple(voxels), voxels.device))


def _grid(matrices: NDArray[np.float64], crop: Size3D, size: Size3D, device: torch.device) -> torch.Tensor:
    """Where each voxel of the views lies in the crop: (n, 3, D, H, W) in [-1, 1] inside, ordered w, h, d."""
    d, h, w = (torch.arange(length, device=device, dtype=torch.float32) - (length - 1) / 2 for length in size)
    return _places(matrices, crop, size, (d, h, w))


def _places(
    matrices: NDArray[np.float64], crop: Size3D, size: Size3D, axes: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """`_grid` of the voxels of views at these distances (float32) from their middle along D, H, W."""
    (d, h, w), device = axes, axes[0].device
    scale = 2 / np.array(crop)
    middle = matrices[:, :3, :3] @ ((np.array(size) - 1) / 2) + matrices[:, :3, 3]
    origin = to_device((middle + 0.5) * scale - 1, device, torch.float32)
    steps = to_device(matrices[:, :3, :3] * scale[:, None], device, torch.float32)
    grid = torch.empty((len(matrices), 3, len(d), len(h), len(w)), device=device)
    for axis in range(3):
        plane = (steps[:, axis, 0, None] * d + origin[:, axis, None])[:, :, None] + (steps[:, axis, 1, None] * h)[
            :, None
        ]
        torch.add(plane[..., None], (steps[:, axis, 2, None] * w)[:, None, None], out=grid[:, 2 - axis])
    return grid


def stays_complete(geometry: Geometry, crop: Size3D) -> NDArray[np.bool_]:
    """(B,) bool, whether a view of a crop (D, H, W) that is valid all over is valid all over too.

    A view that is turned is, where its corners lie in the crop: places are sums of rounded terms that rise or fall
    along each axis, so that the corners, computed by the same operations, are the extremes of all of them.
    """
    room = np.array(crop) - np.array(geometry.size)
    cut = ((geometry.start >= 0) & (geometry.start <= room)).all(1)
    ends = [(torch.arange(2, dtype=torch.float32) * 2 - 1) * ((length - 1) / 2) for length in geometry.size]
    corners = _inside(_places(geometry.matrices, crop, geometry.size, (ends[0], ends[1], ends[2])))
    turned: NDArray[np.bool_] = corners.flatten(1).all(1).numpy()
    complete: NDArray[np.bool_] = np.where(geometry.exact, cut, turned | (geometry.straight & (crop[0] > 1)))
    return complete


def _inside(grid: torch.Tensor) -> torch.Tensor:
    inside = grid[:, 0].abs() <= 1 + _EDGE
    for axis in (1, 2):
        inside &= grid[:, axis].abs() <= 1 + _EDGE
    return inside[:, None]


def _sample(source: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Linear interpolation; between the last voxels' middles and the edge it continues evenly."""
    if source.shape[2] == 1:
        flat = grid[:, :2, 0].permute(0, 2, 3, 1)
        return grid_sample(source[:, :, 0], flat, padding_mode="border", align_corners=False)[:, :, None]
    return grid_sample(source, grid.permute(0, 2, 3, 4, 1), padding_mode="border", align_corners=False)
