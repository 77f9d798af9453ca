"""What a NIfTI header says of places and sizes: its unit, its two transforms, and the voxel size beside them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Spacing3D
from scanfoundry.datasets.readers.geometry import check_spacing
from scanfoundry.datasets.readers.scan import ReadError

_UNIT = 0b111  # the bits of xyzt_units that are of space
_UNITS = {1: ("metres", 1e3), 2: ("millimetres", 1.0), 3: ("microns", 1e-3)}
# How far the sizes of sform and pixdim may differ. Code 1 is the scanner's own space, where nothing is stretched; an
# sform of another code may hold an affine registration to another head.
_RIGID, _REGISTERED = 1.05, 1.5


def unit_of(header: Any) -> tuple[str, float]:
    """The unit of lengths in words, '' where the header does not say, and how many mm it is: 1 where unknown."""
    return _UNITS.get(int(header["xyzt_units"]) & _UNIT, ("", 1.0))


def affine_of(header: Any) -> NDArray[np.float64]:
    """(4, 4) from voxel (x, y, z) to RAS mm: sform, else qform, else what nibabel takes where there is neither.

    Negative voxel sizes, which the standard does not know, count as positive, as nibabel has it.
    """
    sizes = header["pixdim"][1:4]
    header["pixdim"][1:4] = np.abs(sizes)
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= unit_of(header)[1]
    return affine


def check_sizes(header: Any, spacing: Spacing3D) -> None:
    """ReadError where `spacing` (D, H, W) in mm is none of a scan, or pixdim speaks of other voxels than the sform."""
    unit, millimetres = unit_of(header)
    check_spacing(spacing, unit)
    if int(header["sform_code"]) <= 0:
        return
    sizes = np.asarray(header["pixdim"][1:4], np.float64) * millimetres
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        return
    if int(header["qform_code"]) <= 0 and set(np.asarray(header["pixdim"][1:4]).tolist()) == {1.0}:
        return  # nobody has filled them in
    lengths = [int(n) for n in header.get_data_shape()[:3]]
    free = [axis for axis, length in enumerate(lengths) if length > 1]  # of one slice the thickness hardly matters
    ratio = np.exp(np.abs(np.log(sizes[free] / np.array(spacing)[::-1][free])))
    if (ratio > (_RIGID if int(header["sform_code"]) == 1 else _REGISTERED)).any():
        of_sform, of_pixdim = (" x ".join(f"{step:g}" for step in each) for each in (spacing[::-1], sizes))
        raise ReadError(
            f"its sform makes voxels of {of_sform} mm (x, y, z), its pixdim of {of_pixdim} mm: mend the header"
        )
