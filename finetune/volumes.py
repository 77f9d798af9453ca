"""Scans and label maps as arrays at the plan's grid, and back."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from scanforge.configs.errors import UserError
from scanforge.datasets.intensity import IntensityConfig, background, normalise, statistics
from scanforge.datasets.readers import ReadError, Scan, read

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
SPACING_TOLERANCE = 0.1  # a smaller difference is not worth the blur of an interpolation


def read_one(path: Path) -> Scan:
    """The one scan in a file; UserError, naming the file, where it holds none or several."""
    try:
        scans = read(path)
    except ReadError as error:
        raise UserError(f"{path}: {error}") from error
    if len(scans) != 1:
        raise UserError(f"{path} holds {len(scans)} scans; give files of one scan each")
    return scans[0]


def read_labels(path: Path, image: Scan) -> npt.NDArray[np.uint8]:
    """A label map (D, H, W) that lies on `image`'s grid; UserError, naming the file, where it does not.

    An image mask of the two values 0 and 255 is read as 0 and 1.
    """
    scan = read_one(path)
    labels = scan.voxels[0]
    if labels.shape != image.voxels.shape[1:]:
        raise UserError(f"{path}: shape {labels.shape} differs from the image's {image.voxels.shape[1:]}")
    if scan.affine is not None and image.affine is not None:
        corners = np.array([[x, y, z, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
        corners[:, :3] *= np.array(labels.shape[::-1]) - 1
        apart = np.linalg.norm((corners @ (scan.affine - image.affine).T)[:, :3], axis=1).max()
        if apart > 0.1 * min(image.spacing):
            raise UserError(f"{path}: its affine puts it {apart:.2f} mm away from the image; resample it first")
    if scan.affine is None and set(np.unique(labels)) == {0, 255}:
        labels = labels // 255
    rounded = np.asarray(labels).round()
    if not np.array_equal(rounded, labels) or rounded.min() < 0 or rounded.max() > 255:
        raise UserError(f"{path}: label maps hold whole numbers from 0 to 255")
    return rounded.astype(np.uint8)


def prepared(
    scan: Scan, channels: int, modality: str, intensity: IntensityConfig
) -> tuple[npt.NDArray[np.float32], float]:
    """The normalised voxels (channels, D, H, W), and the value that padding gets."""
    voxels = scan.voxels
    if len(voxels) != channels:
        if channels == 1:
            voxels = voxels.astype(np.float32).mean(0, keepdims=True)
        elif len(voxels) == 1:
            voxels = np.repeat(voxels, channels, axis=0)
        else:
            raise UserError(f"the scan has {len(voxels)} channels, the backbone takes {channels}")
    stats = statistics(voxels)
    return normalise(voxels, modality, stats, intensity), background(modality, stats, intensity)


def target_shape(shape: Shape, spacing: Spacing, wanted: Spacing) -> Shape:
    """Voxels at the spacing `wanted`; the same shape where each axis is within the tolerance."""
    ratio = np.array(spacing) / np.array(wanted)
    if (abs(np.log(ratio)) <= np.log1p(SPACING_TOLERANCE)).all():
        return shape
    d, h, w = (max(1, round(size * float(r))) for size, r in zip(shape, ratio, strict=True))
    return d, h, w


def resize(array: npt.NDArray[np.float32], shape: Shape) -> npt.NDArray[np.float32]:
    """(C, D, H, W) to another grid over the same extent: linear, smoothed first where it shrinks."""
    if array.shape[1:] == shape:
        return array
    shrink = np.array(array.shape[1:]) / np.array(shape)
    sigma = np.maximum(0.0, (shrink - 1) / 2)
    if (sigma > 0.1).any():
        array = np.stack([gaussian_filter(channel, sigma) for channel in array])
    tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    return F.interpolate(tensor, size=shape, mode="trilinear", align_corners=False)[0].numpy()


def resize_labels(labels: npt.NDArray[np.uint8], shape: Shape) -> npt.NDArray[np.uint8]:
    """A label map (D, H, W) on another grid over the same extent, by the nearest voxel centre."""
    if labels.shape == shape:
        return labels
    tensor = torch.from_numpy(labels.astype(np.float32))[None, None]
    return F.interpolate(tensor, size=shape, mode="nearest-exact")[0, 0].numpy().astype(np.uint8)
