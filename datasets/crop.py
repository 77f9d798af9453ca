"""Where a crop lies in a scan, and what becomes of it: a pure function of the scan's facts and one seed."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.shards.foreground import cell_edges

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue
Slices = tuple[slice, slice, slice]


def mix(*numbers: int) -> int:
    """A 64-bit number that depends on all of `numbers` (64 bits each) and on their order."""
    packed = struct.pack(f"<{len(numbers)}Q", *[number & 0xFFFFFFFFFFFFFFFF for number in numbers])
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1). Of Philox's raw stream, which numpy keeps the same in all versions."""
    return (np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _eight(seed: int) -> list[float]:
    """Eight numbers in [0, 1): as `uniforms`, but without making a generator, for what is done for every crop."""
    digest = hashlib.blake2b(struct.pack("<Q", seed), digest_size=64, person=b"place").digest()
    return [(number >> 11) * 2.0**-53 for number in struct.unpack("<8Q", digest)]


def permutation(seed: int, count: int) -> NDArray[np.int64]:
    """A permutation of range(count), the same in all versions of numpy."""
    return np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")


@dataclass(frozen=True)
class CropPlacement:
    """Where a crop lies in a scan, and how it is flipped.

    Attributes:
        start: first voxel (D, H, W). Negative along axes where the scan is smaller than the crop and centred in it.
        flips: along D, H, W.
    """

    start: Size3D
    flips: tuple[bool, bool, bool]  # along D, H, W


def place(
    seed: int, scan: Size3D, crop: Size3D, bitmap: NDArray[np.bool_], foreground: float, axes: Sequence[int]
) -> CropPlacement:
    """The placement of the crop that a seed stands for.

    Args:
        seed: of the crop.
        scan: shape (D, H, W) of the scan.
        crop: shape (D, H, W) of the crop.
        bitmap: foreground cells of the scan.
        foreground: probability that the crop is centred on a foreground voxel; else all positions are equally likely.
        axes: those that may be flipped.
    """
    draw = _eight(seed)
    room = [max(0, length - size) for length, size in zip(scan, crop, strict=True)]
    cells = np.flatnonzero(bitmap)
    if draw[0] < foreground and cells.size and any(room):
        plane, column = divmod(int(cells[int(draw[1] * cells.size)]), bitmap.shape[2])
        cell = (*divmod(plane, bitmap.shape[1]), column)
        starts = []
        for axis in range(3):
            low, high = cell_edges(scan[axis], bitmap.shape[axis], cell[axis])
            centre = int(low + draw[2 + axis] * (high - low))
            starts.append(min(max(0, centre - crop[axis] // 2), room[axis]))
    else:
        starts = [int(draw[2 + axis] * (room[axis] + 1)) for axis in range(3)]
    for axis in range(3):
        if crop[axis] > scan[axis]:
            starts[axis] = -((crop[axis] - scan[axis]) // 2)
    flips = [axis in axes and bool(draw[5 + axis] < 0.5) for axis in range(3)]
    return CropPlacement((starts[0], starts[1], starts[2]), (flips[0], flips[1], flips[2]))


def near(
    first: CropPlacement, seed: int, scan: Size3D, crop: Size3D, share: float, axes: Sequence[int]
) -> CropPlacement:
    """The placement of another crop of a scan that overlaps a first one.

    Every start within reach is equally likely; the reach is the same fraction of the crop along each axis.

    Args:
        first: placement of the first crop.
        seed: of this crop.
        scan: shape (D, H, W) of the scan.
        crop: shape (D, H, W) of both crops.
        share: over 0; so much of the voxels of this crop lie in the first at least.
        axes: those that may be flipped.
    """
    draw = _eight(seed)
    room = [max(0, length - size) for length, size in zip(scan, crop, strict=True)]
    free = sum(1 for each, size in zip(room, crop, strict=True) if each and size > 1)
    side = share ** (1 / max(1, free))  # of the crop that is shared along each axis
    starts = list(first.start)
    for axis in range(3):
        if room[axis]:
            reach = int((1 - side) * crop[axis])
            low, high = max(0, starts[axis] - reach), min(room[axis], starts[axis] + reach)
            starts[axis] = low + int(draw[2 + axis] * (high - low + 1))
    flips = [axis in axes and bool(draw[5 + axis] < 0.5) for axis in range(3)]
    return CropPlacement((starts[0], starts[1], starts[2]), (flips[0], flips[1], flips[2]))


def overlap(start: Size3D, scan: Size3D, crop: Size3D) -> tuple[Slices, Slices]:
    """The part of the scan that lies in the crop: as slices of the scan, and as slices of the crop."""
    low = [max(0, begin) for begin in start]
    high = [min(length, begin + size) for begin, length, size in zip(start, scan, crop, strict=True)]
    of_scan = [slice(a, b) for a, b in zip(low, high, strict=True)]
    of_crop = [slice(a - begin, b - begin) for a, b, begin in zip(low, high, start, strict=True)]
    return (of_scan[0], of_scan[1], of_scan[2]), (of_crop[0], of_crop[1], of_crop[2])


def as_channels(voxels: NDArray, channels: int) -> NDArray:
    """Voxels (C, ...) with 1 or 3 channels: RGB becomes luminance (ITU-R BT.601), grey is repeated."""
    if voxels.shape[0] == channels:
        return voxels
    if channels == 1 and voxels.shape[0] == 3:
        # No matrix product: its roundings differ between processors and shapes, and so between crop and scan.
        red, green, blue = (np.float32(w) * c.astype(np.float32) for w, c in zip(_LUMINANCE, voxels, strict=True))
        return (red + green + blue)[None]
    if voxels.shape[0] == 1:
        return np.broadcast_to(voxels, (channels, *voxels.shape[1:]))
    raise ValueError(f"{voxels.shape[0]} channels cannot become {channels}")
