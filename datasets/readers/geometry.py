"""Spacing and orientation: out of an affine, which voxel sizes are believed, and EXIF's turns of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Spacing3D
from scanfoundry.datasets.readers.scan import ReadError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def geometry(affine: NDArray[np.float64]) -> tuple[Spacing3D, str]:
    """Spacing and orientation of an affine.

    Args:
        affine: (4, 4) from voxel (W, H, D) to RAS mm.

    Returns:
        The spacing (D, H, W) in mm and the orientation code, as in `Scan`.

    Raises:
        ReadError: the affine is singular or holds NaN.
    """
    import nibabel as nib  # here: it takes a fifth of a second, which no other function of this module needs

    if not np.isfinite(affine).all():
        raise ReadError("affine holds NaN or infinite numbers")
    x, y, z = (float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
    codes = nib.aff2axcodes(affine)
    if None in codes or min(x, y, z) <= 0:
        raise ReadError("affine is singular: the scan has no spacing or orientation")
    return (z, y, x), "".join(reversed([str(code) for code in codes]))


FINEST, COARSEST = 1e-3, 100.0  # mm; beyond lies a unit that was mistaken, and a grid of terabytes
_ROUNDING = 1e-5  # relative: headers hold float32


def check_spacing(spacing: Sequence[float], unit: str = "") -> None:
    """Check that voxels have a size that a scan can have.

    Args:
        spacing: (D, H, W) in mm.
        unit: in which the header gives lengths, for the message; '' where it does not say.

    Raises:
        ReadError: a step lies outside of `FINEST` to `COARSEST`.
    """
    if all(FINEST * (1 - _ROUNDING) <= step <= COARSEST * (1 + _ROUNDING) for step in spacing):
        return  # NaN is not between
    size = " x ".join(f"{step:g}" for step in spacing)
    by = f" by a header that counts in {unit}" if unit else ""
    raise ReadError(
        f"voxels of {size} mm (D x H x W){by}; {FINEST:g} to {COARSEST:g} mm are read: mend the unit or the size "
        "in its header"
    )


ORIENTATION = 0x0112
# What is done with (..., H, W): transpose, then flip along H, along W.
UPRIGHT = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}


def upright_by(orientation: Any) -> tuple[int, int, int]:
    """(transpose, flip along H, flip along W), each 0 or 1; nothing for what is no orientation."""
    return UPRIGHT.get(orientation, (0, 0, 0))


def turned(pixels: NDArray, orientation: Any) -> NDArray:
    """`pixels` (..., H, W) as they are to be looked at."""
    transpose, flip_h, flip_w = upright_by(orientation)
    if transpose:
        pixels = pixels.swapaxes(-1, -2)
    return pixels[..., :: -1 if flip_h else 1, :: -1 if flip_w else 1]
