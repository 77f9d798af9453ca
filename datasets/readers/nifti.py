"""NIfTI by nibabel."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from scanforge.datasets.readers.scan import ReadError, Scan


def read_nifti(path: Path) -> list[Scan]:
    """The scans in `path` (.nii, .nii.gz): one, or one per volume of a 4D series; a slice has depth 1.

    An array (x, y, z) is returned as its transpose (D, H, W). Voxels equal `img.dataobj`, in the smallest dtype that
    holds every one of them exactly. ReadError says why a file is refused.
    """
    try:
        image = _load(path)
        raw = np.asanyarray(image.dataobj)
    except (ImageFileError, WrapStructError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split()).replace(str(path), "file") or type(error).__name__
        raise ReadError(f"not a readable NIfTI: {reason}") from error
    _refuse(raw)
    while raw.ndim > 4 and raw.shape[-1] == 1:
        raw = raw[..., 0]
    if not 2 <= raw.ndim <= 4:
        raise ReadError(f"{raw.ndim}D array of shape {raw.shape}; 2D, 3D and series of 3D are read")
    volumes = list(np.moveaxis(raw, -1, 0)) if raw.ndim == 4 else [raw if raw.ndim == 3 else raw[..., None]]
    spacing, affine, orientation = _geometry(image)
    return [Scan(compact(volume).T[None], spacing, affine, orientation) for volume in volumes]


def _load(path: Path) -> Any:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        # Whole, unlike nibabel, which stops before gzip's checksum: damage would pass as voxels.
        content = gzip.decompress(content)
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    if 540 in sizes:
        return nib.Nifti2Image.from_bytes(content)
    if 348 in sizes:
        return nib.Nifti1Image.from_bytes(content)
    raise ImageFileError(f"no NIfTI header in {len(content)} bytes")


def _refuse(raw: NDArray) -> None:
    if raw.dtype.fields is not None:
        raise ReadError("RGB NIfTI (structured voxels) is not supported; convert it to one channel")
    if raw.dtype.kind not in "iufb":
        raise ReadError(f"voxels of type {raw.dtype} are not supported")
    if raw.size == 0:
        raise ReadError(f"empty: shape {raw.shape}")
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        raise ReadError("holds NaN or infinite voxels")


def _geometry(image: Any) -> tuple[tuple[float, float, float], NDArray[np.float64], str]:
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all():
        raise ReadError("affine holds NaN or infinite numbers")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    codes = nib.aff2axcodes(affine)
    if None in codes or not (steps > 0).all():
        raise ReadError("affine is singular: the scan has no spacing or orientation")
    x, y, z = (float(step) for step in steps)
    return (z, y, x), affine, "".join(reversed([str(code) for code in codes]))


def compact(array: NDArray) -> NDArray:
    """`array` in native byte order; wide floats and integers in the smallest dtype that is exactly equal.

    Scaling (slope and intercept) turns integers into float64 on reading; most of those are integers or float32 still.
    """
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.itemsize < 8:
        return native
    low, high = native.min(), native.max()
    for name in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"):
        kind = np.dtype(name)
        limits: Any = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            small = native.astype(kind)
            if np.array_equal(small, native):
                return small
    if native.dtype.itemsize > 8:
        raise ReadError(f"voxels of type {native.dtype} do not fit into 64 bits exactly")
    return native
