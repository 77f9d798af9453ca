"""Sizes and voxel spacings of scans: one triple for each, always in the order (D, H, W)."""

from pydantic import PositiveInt

Size3D = tuple[int, int, int]  # (D, H, W) in voxels; an image has D = 1
PositiveSize3D = tuple[PositiveInt, PositiveInt, PositiveInt]  # the same in a configuration, each at least 1
Spacing3D = tuple[float, float, float]  # (D, H, W) in mm
