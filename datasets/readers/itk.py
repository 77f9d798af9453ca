"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) by SimpleITK."""

import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from scanfoundry.datasets.readers.geometry import LPS_TO_RAS, geometry
from scanfoundry.datasets.readers.guard import check_voxels, reason_of
from scanfoundry.datasets.readers.itk_header import ItkHeader, check_stream, read_header
from scanfoundry.datasets.readers.nifti import compact
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

MAX_CHANNELS = 4  # more components than colours are a series (directions of diffusion, times)
_MM = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1e3, "um": 1e-3, "µm": 1e-3, "micron": 1e-3}
_MODALITIES = {"MET_MOD_CT": "ct", "MET_MOD_MR": "mr", "MET_MOD_US": "us", "MET_MOD_NM": "nm"}

sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_itk(source: Source) -> Iterator[Scan]:
    """The scans of one NRRD or MetaImage file: one, or one per volume of a 4D series (part '0', '1', ...).

    ITK's (x, y, z) becomes (D, H, W) = (z, y, x), its LPS becomes RAS. Up to four components are channels, more are a
    series of volumes, or the frames of a 2D image. A 2D image has D = 1, its spacing and no affine.
    """
    path = source.paths[0]
    try:
        header = read_header(path)
        reader = _reader(path)
        _check(reader, path, header)
        yield from _scans(reader, header)
    except (RuntimeError, OSError, ValueError, zlib.error) as error:
        raise ReadError(f"not a readable NRRD or MetaImage: {reason_of(error, path)}") from error


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    # By name: else ITK takes whatever the content looks like, a DICOM included.
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in {".nrrd", ".nhdr"} else "MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _check(reader: sitk.ImageFileReader, path: Path, header: ItkHeader) -> None:
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.search(r"(\d+)-bit", kind)
    if bits is None or "complex" in kind:
        raise ReadError(f"voxels of type '{kind}' are not supported")
    if not 2 <= reader.GetDimension() <= 4:
        raise ReadError(f"{reader.GetDimension()}D array; 2D, 3D and series of 3D are read")
    voxels = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    check_stream(path, header, voxels * int(bits[1]) // 8)


def _scans(reader: sitk.ImageFileReader, header: ItkHeader) -> Iterator[Scan]:
    spacing = _spacing(reader, header)
    affine = _affine(reader, spacing) if reader.GetDimension() > 2 else None
    step, orientation = geometry(affine) if affine is not None else ((1.0, spacing[1], spacing[0]), "")
    modality = _MODALITIES.get(reader.GetMetaData("Modality") if reader.HasMetaDataKey("Modality") else "", "")
    series = reader.GetDimension() == 4 or (affine is not None and reader.GetNumberOfComponents() > MAX_CHANNELS)
    for number, (array, frames) in enumerate(_arrays(reader)):
        check_voxels(array)
        part = str(number) if series else ""
        yield Scan(compact(array), step, affine, orientation, modality, part=part, frames=frames)


def _arrays(reader: sitk.ImageFileReader) -> Iterator[tuple[NDArray, bool]]:
    """(C, D, H, W) of each scan, and whether D counts frames."""
    for volume in _volumes(reader):
        if reader.GetNumberOfComponents() == 1:
            yield volume.reshape(1, -1, *volume.shape[-2:]).copy(), False
            continue
        channels = np.moveaxis(volume if volume.ndim == 4 else volume[None], -1, 0)
        if len(channels) <= MAX_CHANNELS:
            yield np.ascontiguousarray(channels), False
        elif volume.ndim == 3:
            yield np.ascontiguousarray(channels[None, :, 0]), True
        else:
            yield from ((channel[None].copy(), False) for channel in channels)


def _volumes(reader: sitk.ImageFileReader) -> Iterator[NDArray]:
    """([D,] H, W[, components]) of each volume; views that last until the next."""
    *extent, count = reader.GetSize()
    if reader.GetDimension() == 4 and reader.GetImageIO() == "MetaImageIO":  # reads a region without the rest
        for number in range(count):
            reader.SetExtractSize([*extent, 0])
            reader.SetExtractIndex([0] * len(extent) + [number])
            image = reader.Execute()
            yield sitk.GetArrayViewFromImage(image)
        return
    image = reader.Execute()
    view = sitk.GetArrayViewFromImage(image)
    yield from view if reader.GetDimension() == 4 else [view]


def _spacing(reader: sitk.ImageFileReader, header: ItkHeader) -> tuple[float, ...]:
    """Voxel size along x, y(, z) in mm."""
    units = re.findall(r"[\w²µ]+", header.fields.get("space units", header.fields.get("distanceunits", "mm")).lower())
    if strange := [unit for unit in units if unit not in _MM]:
        raise ReadError(f"spacing in an unknown unit '{strange[0][:20]}'")
    spacing = [float(step) for step in reader.GetSpacing()[:3]]
    scales = [_MM[unit] for unit in units] if len(units) > 1 else [_MM[units[0]] if units else 1.0] * len(spacing)
    spacing = [step * scale for step, scale in zip(spacing, scales, strict=False)]
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ReadError(f"voxels of size {spacing}")
    return tuple(spacing)


def _affine(reader: sitk.ImageFileReader, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """(4, 4) from voxel (x, y, z) to RAS mm; of a 4D series, that of its volumes."""
    side = reader.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.array(reader.GetDirection()).reshape(side, side)[:3, :3] * np.array(spacing)
    scale = np.array(spacing) / np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = np.array(reader.GetOrigin()[:3]) * scale
    return LPS_TO_RAS @ affine
