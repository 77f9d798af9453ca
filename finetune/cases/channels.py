"""Several input channels: brought to one grid, missing ones filled, some hidden in training."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.datasets.labels.attach import check_grid
from scanfoundry.datasets.readers import ReadError, Scan
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.volumes import Grey, prepared

MIN_OVERLAP = 0.01  # share of the first channel's voxels that another channel must cover


def read_channels(images: Sequence[ScanSource | None]) -> list[Scan | None]:
    """The scans of one case; UserError, naming the source, where one cannot be read or cannot be brought to the grid
    of the first that is there."""
    scans = [None if image is None else image.read() for image in images]
    first = next(scan for scan in scans if scan is not None)
    for image, scan in zip(images, scans, strict=True):
        if scan is None or same_grid(first, scan):
            continue
        overlap = covered(first, scan)
        if not overlap >= MIN_OVERLAP:  # nan too
            why = "has another shape and no affine" if np.isnan(overlap) else "does not overlap with the first channel"
            raise UserError(f"{image}: {why}: it cannot be brought to one grid")
    return scans


def same_grid(first: Scan, scan: Scan) -> bool:
    """Whether voxels of equal index are the same place (within a tenth of a voxel)."""
    try:
        check_grid(first, scan)
    except ReadError:
        return False
    return True


def stacked(
    scans: Sequence[Scan | None], modalities: Sequence[str], intensity: IntensityConfig, grey: Grey
) -> tuple[npt.NDArray[np.float32], float]:
    """Normalised voxels (channels, D, H, W) at the grid of the first scan that is there, and the value outside.

    Each channel is normalised by its own modality and statistics. The value outside is the mean of the channels' own;
    a missing channel, and what another channel's field of view does not reach, has it everywhere.
    """
    first = next(scan for scan in scans if scan is not None)
    parts = [
        None if scan is None else prepared(scan, 1, modality, intensity, grey)
        for scan, modality in zip(scans, modalities, strict=True)
    ]
    fill = float(np.mean([part[1] for part in parts if part is not None]))
    out = np.full((len(scans), *first.voxels.shape[1:]), fill, np.float32)
    for channel, scan, part in zip(out, scans, parts, strict=True):
        if scan is not None and part is not None:
            channel[:] = part[0][0] if same_grid(first, scan) else on_grid(first, scan, part[0][0], fill)
    return out, fill


def on_grid(first: Scan, scan: Scan, voxels: npt.NDArray[np.float32], fill: float) -> npt.NDArray[np.float32]:
    """`voxels` (D, H, W) of `scan` at the grid of `first`, by world coordinates: linear, smoothed where it shrinks."""
    matrix, offset = _to_index(first, scan)
    steps = np.linalg.norm(matrix, axis=1)  # voxels of `scan` per voxel of `first`, by axis of `scan`
    sigma = np.maximum(0.0, (steps - 1) / 2)
    smooth = gaussian_filter(voxels, sigma) if (sigma > 0.1).any() else voxels
    shape = first.voxels.shape[1:]
    # Half a voxel beyond the outermost centres still is scan.
    padded = np.pad(smooth, 1, mode="edge")
    moved = affine_transform(padded, matrix, offset + 1, shape, np.float32, order=1, mode="nearest")
    return np.where(_inside(matrix, offset, shape, voxels.shape), moved, np.float32(fill))


def covered(first: Scan, scan: Scan) -> float:
    """The share of `first`'s voxels that lie within `scan`; nan where the two have no common world."""
    if first.affine is None or scan.affine is None:
        return float("nan")
    return float(_inside(*_to_index(first, scan), first.voxels.shape[1:], scan.voxels.shape[1:]).mean())


def hide_channels(images: Tensor, present: Tensor, fills: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Whole channels of (B, C, D, H, W) set to their sample's fill value (B,): those that are not `present` (B, C), and
    each of the others with probability `share`; one that is present always stays."""
    hidden = torch.from_numpy(rng.random(present.shape) < share) & present
    for row, (gone, there) in enumerate(zip(hidden, present, strict=True)):
        if bool((gone == there).all()):
            hidden[row, int(rng.choice(torch.nonzero(there).flatten().numpy()))] = False
    return torch.where((hidden | ~present).view(*present.shape, 1, 1, 1), fills.view(-1, 1, 1, 1, 1), images)


def _to_index(first: Scan, scan: Scan) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """index in `scan` = matrix @ index in `first` + offset, both (D, H, W)."""
    assert first.affine is not None
    assert scan.affine is not None
    both = np.linalg.inv(scan.affine) @ first.affine  # of (x, y, z)
    return both[2::-1, 2::-1], both[2::-1, 3]


def _inside(
    matrix: npt.NDArray, offset: npt.NDArray, shape: tuple[int, ...], extent: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """(D, H, W) of `shape`: which voxel centres lie in a grid of `extent`, voxels counted with their edges."""
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    inside = np.ones(shape, bool)
    for row, shift, size in zip(matrix, offset, extent, strict=True):
        place = row[0] * grid[0] + row[1] * grid[1] + row[2] * grid[2] + shift
        inside &= (place >= -0.5 - 1e-6) & (place <= size - 0.5 + 1e-6)
    return inside
