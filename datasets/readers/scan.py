"""A scan in memory, and the one exception of a file that cannot become one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class ReadError(Exception):
    """A file that holds no usable scan; the text is the reason, without the file's path."""


@dataclass(frozen=True)
class Scan:
    """One volume or image.

    voxels       (C, D, H, W) in the file's own dtype (native byte order); an image has D = 1
    spacing      (D, H, W) in mm; 1 where the file knows none
    affine       (4, 4) from voxel (x, y, z) = (W, H, D) to world (RAS mm), or None for an image
    orientation  world direction in which D, H and W grow ('SAR' is D to superior, H to anterior, W to right);
                 '' for an image
    """

    voxels: NDArray
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64] | None = None
    orientation: str = ""
