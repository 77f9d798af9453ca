"""Scans and label maps as arrays at the plan's grid, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D, Spacing3D
from scanfoundry.datasets.crop import as_channels
from scanfoundry.datasets.intensity import IntensityConfig, background, normalise, statistics
from scanfoundry.datasets.labels.attach import as_mask, check_grid
from scanfoundry.datasets.readers import ReadError, Scan
from scanfoundry.datasets.readers.label_values import RawMask, is_image, raw_of
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.label_values import MOST, LabelValues
from scanfoundry.finetune.cases.sources import scan_file

Grey = Literal["mean", "luminance"]  # of colours, where one channel is wanted
Labels = npt.NDArray[np.uint8]  # a label map (D, H, W)
SPACING_TOLERANCE = 0.1  # a smaller difference is not worth the blur of an interpolation
MAX_VOXELS = 2**30  # of a resampled channel; a scan that is as large at its own spacing stays what it is
FEWEST, MANY = 3, 16  # voxels along the longest axis: of what is left of a scan, where it had many


def read_one(path: Path) -> Scan:
    """The one scan in a file; UserError, naming the file, where it holds none or several."""
    return scan_file(path).read()


def read_numbers(source: ScanSource, image: Scan, cut: bool = True) -> RawMask:
    """The numbers (D, H, W) of a mask that lies on `image`'s grid; UserError, naming the source, where it does not.

    cut: greys that are clearly black and white are 0 and 255.
    """
    scan = source.read()
    try:
        check_grid(image, scan)
        return raw_of(scan, cut)
    except ReadError as error:
        raise UserError(f"{source}: {error}") from error


def read_mask(source: ScanSource, image: Scan) -> npt.NDArray[np.unsignedinteger]:
    """A mask (D, H, W) of whole numbers that lies on `image`'s grid; UserError, naming the source, where it does not.

    A picture of the two values 0 and 255 is read as 0 and 1.
    """
    scan = source.read()
    try:
        check_grid(image, scan)
        return as_mask(scan)
    except ReadError as error:
        raise UserError(f"{source}: {error}") from error


def read_labels(source: ScanSource, image: Scan, values: LabelValues | None = None) -> npt.NDArray[np.uint8]:
    """A label map (D, H, W) of classes, and IGNORE, as `values` says; UserError, naming the source, for another number.

    Without `values`: the numbers as they are, up to 254; of an image in 0 and 255, 0 and 1.
    """
    if values is not None:
        scan = source.read()
        try:
            check_grid(image, scan)
            return values.encode(raw_of(scan, not values.nearest).numbers, is_image(scan))
        except ReadError as error:
            raise UserError(f"{source}: {error}") from error
    labels = read_mask(source, image)
    if labels.max() > MOST:
        raise UserError(f"{source}: label {labels.max()}: without task.values, labels are numbers from 0 to {MOST}")
    return labels.astype(np.uint8)


def voxel_mm3(scan: Scan) -> float:
    """The volume of a voxel in mm³: the determinant of its affine, also where its axes are not at right angles."""
    if scan.affine is None:
        return float(np.prod(scan.spacing))
    return float(abs(np.linalg.det(scan.affine[:3, :3])))


def prepared(
    scan: Scan, channels: int, modality: str, intensity: IntensityConfig, grey: Grey
) -> tuple[npt.NDArray[np.float32], float]:
    """The normalised voxels (channels, D, H, W), and the value that padding gets.

    Raises:
        UserError: the scan has another number of channels, and is no colour or grey image that could be brought to it.
    """
    voxels = scan.voxels
    if len(voxels) != channels:
        if not (len(voxels) == 1 or (channels == 1 and len(voxels) == 3)):  # measurements of several things
            raise UserError(f"the scan has {len(voxels)} channels, the model takes {channels}")
        if channels == 1 and grey == "mean":
            voxels = voxels.astype(np.float32).mean(0, keepdims=True)
        else:
            voxels = np.ascontiguousarray(as_channels(voxels, channels))
    stats = statistics(voxels)
    return normalise(voxels, modality, stats, intensity), background(modality, stats, intensity)


def target_shape(shape: Size3D, spacing: Spacing3D, wanted: Spacing3D) -> Size3D:
    """Voxels at the spacing `wanted`; the same shape where each axis is within the tolerance."""
    ratio = np.array(spacing) / np.array(wanted)
    if (abs(np.log(ratio)) <= np.log1p(SPACING_TOLERANCE)).all():
        return shape
    d, h, w = (max(1, round(size * float(r))) for size, r in zip(shape, ratio, strict=True))
    return d, h, w


def check_resampled_size(shape: Size3D, spacing: Spacing3D, target: Size3D) -> None:
    """UserError where a scan (D, H, W) with `spacing` in mm would become a grid `target` beyond what memory holds, or
    next to nothing of it would be left: the scan or the plan has a mistaken unit."""
    voxels, own = (int(np.prod([int(n) for n in each])) for each in (target, shape))
    size, grid = (" x ".join(f"{n:g}" for n in each) for each in (spacing, target))
    if voxels > max(MAX_VOXELS, own):
        raise UserError(
            f"its voxels of {size} mm (D x H x W) would become a grid of {grid} at the plan's spacing; at most "
            f"{MAX_VOXELS:,} voxels are made: one of the two spacings is mistaken"
        )
    if max(target) < FEWEST and max(shape) >= MANY:
        raise UserError(
            f"its voxels of {size} mm (D x H x W) would become a grid of {grid} at the plan's spacing, in which "
            "nothing is left to see: one of the two spacings is mistaken"
        )


def resize(array: npt.NDArray[np.float32], shape: Size3D) -> npt.NDArray[np.float32]:
    """(C, D, H, W) to another grid over the same extent: linear, smoothed first where it shrinks."""
    if array.shape[1:] == shape:
        return array
    shrink = np.array(array.shape[1:]) / np.array(shape)
    sigma = np.maximum(0.0, (shrink - 1) / 2)
    if (sigma > 0.1).any():
        array = np.stack([gaussian_filter(channel, sigma) for channel in array])
    tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    return F.interpolate(tensor, size=shape, mode="trilinear", align_corners=False)[0].numpy()


def resize_labels(labels: npt.NDArray[np.uint8], shape: Size3D) -> npt.NDArray[np.uint8]:
    """A label map (D, H, W) on another grid over the same extent, by the nearest voxel centre."""
    if labels.shape == shape:
        return labels
    tensor = torch.from_numpy(labels.astype(np.float32))[None, None]
    return F.interpolate(tensor, size=shape, mode="nearest-exact")[0, 0].numpy().astype(np.uint8)


def volumes_of(labels: npt.NDArray[np.uint8], scan: Scan, classes: Sequence[str]) -> dict[str, int | float | str]:
    """Voxels of each class, and millilitres, of six digits, where the scan lies in the world."""
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)[1:]
    row: dict[str, int | float | str] = {}
    for name, count in zip(classes, counts, strict=True):
        row[f"{name} voxels"] = int(count)
        row[f"{name} ml"] = "" if scan.affine is None else float(f"{count * voxel_mm3(scan) / 1000:.6g}")
    return row
