"""Spacing and orientation out of an affine."""

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.scan import ReadError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def geometry(affine: NDArray[np.float64]) -> tuple[tuple[float, float, float], str]:
    """Spacing (D, H, W) in mm and orientation code of an affine (4, 4) from voxel (W, H, D) to RAS mm.

    ReadError where it is singular or holds NaN.
    """
    if not np.isfinite(affine).all():
        raise ReadError("affine holds NaN or infinite numbers")
    x, y, z = (float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
    codes = nib.aff2axcodes(affine)
    if None in codes or min(x, y, z) <= 0:
        raise ReadError("affine is singular: the scan has no spacing or orientation")
    return (z, y, x), "".join(reversed([str(code) for code in codes]))
