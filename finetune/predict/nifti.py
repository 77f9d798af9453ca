"""NIfTI on the grid of a scan, written plane by plane, the same bytes each time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from scanfoundry.configs.files import write_whole
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.readers.nifti import header_of
from scanfoundry.finetune.predict.outputs import Origin

# Where the voxels lie, in a header's own words: copied bit by bit, and nothing else of it, which may name the patient.
_GEOMETRY = (
    *("xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_FULL = 65535  # what a probability of 1 is stored as


def save_labels(target: Path, codes: npt.NDArray[np.uint8], origin: Origin) -> None:
    """A label map (D, H, W) of codes, as the numbers of the model's classes."""
    write_labels(target, origin.spec.labels.decode(codes), origin.scan, _own_file(origin))


def save_fractions(target: Path, values: npt.NDArray[np.floating], origin: Origin) -> None:
    """Numbers from 0 to 1, (D, H, W) or (K, D, H, W)."""
    write_fractions(target, values, origin.scan, _own_file(origin))


def _own_file(origin: Origin) -> Path | None:
    source = origin.item.source
    return source.paths[0] if source.kind == "nifti" else None


def write_labels(target: Path, labels: npt.NDArray[np.integer], scan: Scan, source: Path | None) -> None:
    """A label map (D, H, W) of any integers. `source`: the NIfTI file that the scan was read from, whose geometry is
    kept as it is."""
    kind = labels.dtype.newbyteorder("<")
    _write(target, _header(labels.shape, kind, scan, source), (plane.astype(kind, copy=False) for plane in labels))


def write_fractions(target: Path, values: npt.NDArray[np.floating], scan: Scan, source: Path | None) -> None:
    """Numbers from 0 to 1, (D, H, W) or (K, D, H, W), which becomes a fourth axis: 16 bits and a slope of 1/65535."""
    header = _header(values.shape[-3:], np.dtype("<u2"), scan, source)
    if values.ndim == 4:
        header.set_data_shape((*_three(header), len(values)))
    header.set_slope_inter(1 / _FULL, 0)
    _write(target, header, _scaled(values.reshape(-1, *values.shape[-2:])))


def _scaled(planes: npt.NDArray[np.floating]) -> Iterator[npt.NDArray]:
    for plane in planes:
        yield np.round(np.clip(plane.astype(np.float32), 0, 1) * _FULL).astype("<u2")


def _header(shape: tuple[int, ...], dtype: np.dtype, scan: Scan, source: Path | None) -> Any:
    """Of voxels (x, y, z) = (W, H, D); a scan without a place in the world gets its voxel size and the code 0."""
    original: Any = header_of(source) if source is not None else None
    second = max(shape) > 32767 or isinstance(original, nib.Nifti2Header)  # whose numbers are twice as long
    kind = nib.Nifti2Header if second else nib.Nifti1Header
    header: Any = kind()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    if original is not None:
        if _size(original) == np.prod(shape):  # as flat or as deep as it was
            header.set_data_shape(original.get_data_shape())
        for name in _GEOMETRY:
            header[name] = original[name]
        header["pixdim"][:4] = original["pixdim"][:4]  # after the shape, which resets those of absent axes
        return header
    header.set_xyzt_units("mm")
    header.set_zooms(scan.spacing[::-1])
    if scan.affine is not None:
        header.set_qform(scan.affine, code=1)
        header.set_sform(scan.affine, code=1)
    return header


def _size(header: Any) -> int:
    return int(np.prod([int(n) for n in header.get_data_shape()]))


def _three(header: Any) -> tuple[int, int, int]:
    x, y, z = (*header.get_data_shape(), 1, 1)[:3]
    return x, y, z


def _write(target: Path, header: Any, planes: Iterable[npt.NDArray]) -> None:
    # Header, no extensions, voxels: all that a single-file NIfTI is.
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset

    def write(part: Path) -> None:
        with part.open("wb") as raw, igzip.IGzipFile("", "wb", 2, raw, 0) as stream:
            stream.write(header.binaryblock)
            stream.write(bytes(header.single_vox_offset - len(header.binaryblock)))
            for plane in planes:
                stream.write(np.ascontiguousarray(plane).tobytes())

    write_whole(target, write)
