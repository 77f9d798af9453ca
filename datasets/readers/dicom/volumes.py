"""Volumes: headers say what must come out, dcm2niix converts, and the result is compared with the headers."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.conversion.convert import Conversion, name_suffixes, run_dcm2niix
from scanfoundry.datasets.readers.dicom.conversion.placement import checked_affine, straightened
from scanfoundry.datasets.readers.dicom.conversion.slices import Scale, is_fine
from scanfoundry.datasets.readers.dicom.conversion.verify import check_no_mosaic, check_own_tiles, match_volumes
from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.metadata import ScanMetadata, metadata_of
from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers
from scanfoundry.datasets.readers.dicom.pixels.decode import without_padding
from scanfoundry.datasets.readers.dicom.pixels.integrity import check_complete
from scanfoundry.datasets.readers.dicom.series.grid import Grid
from scanfoundry.datasets.readers.dicom.series.planes import describe_series, is_mosaic
from scanfoundry.datasets.readers.dicom.series.tiles import has_tiles
from scanfoundry.datasets.readers.geometry import geometry
from scanfoundry.datasets.readers.guard import check_expansion, check_voxels
from scanfoundry.datasets.readers.nifti import compact
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

_INTERPOLATED = {"Tilt", "Eq"}
_OVERLAY = re.compile(r"ROI\d+")  # of group 6000, in an image of its own


@dataclass(frozen=True)
class Volume:
    """`number` of a converted image at `affine`; `scales` (slope, intercept) of its planes, where it holds none."""

    image: Any
    number: int
    affine: NDArray[np.float64]
    scales: list[Scale] | None = None

    def voxels(self) -> NDArray:
        """(x, y, z), slope applied; nothing else of a series is read."""
        if len(self.image.shape) < 4:
            found = np.asanyarray(self.image.dataobj).reshape(*self.image.shape, *[1] * (3 - len(self.image.shape)))
        else:
            found = np.asanyarray(self.image.dataobj[..., self.number])
        if self.scales is None:
            return found
        slopes, intercepts = np.asarray(self.scales, np.float64).T
        return found * slopes + intercepts


def read_volume(source: Source) -> Iterator[Scan]:
    """Read the volumes of a 'dicom-volume' source.

    Args:
        source: files of one series.

    Yields:
        Scans (1, D, H, W), D from slice to slice: stored values times their slope, CT in Hounsfield units, in the
        smallest dtype that holds them; float32 where no integer does. Voxels that a CT marks as padding, below air,
        become air. Volumes of one source have `part` '1', '2', ...

    Raises:
        ReadError: the slices are no trustworthy volume, or the conversion does not match the headers.
    """
    files = scan_headers(source.paths)
    _check_files(files)
    known = metadata_of(files[0])
    described = None if is_mosaic(files[0]) and not has_tiles(files[0]) else describe_series(files, known.thickness)
    if described is None:
        conversion = run_dcm2niix(files, [], None)
    else:
        plain = described.is_plain and not any(file.loose_pixels for file in files)
        plain = plain and not is_fine(1.0 if file.slope is None else file.slope for file in files)
        conversion = run_dcm2niix(files, described.planes, described.grid, plain)
    with conversion as made:
        volumes = _mosaics(files, made) if described is None else _matched(described.grid, made, known)
        for volume in volumes:
            _check_varied(volume.voxels())
        for number, volume in enumerate(volumes, 1):
            yield _scan(volume, files[0], known, str(number) if len(volumes) > 1 else "")


def _check_files(files: Sequence[FileHeader]) -> None:
    for file in files:
        if file.state != "dicom":
            raise ReadError("a file of the series is gone or no DICOM any more")
        check_complete(file)
    if any(file.samples != 1 for file in files):
        raise ReadError("colour slices are renderings, not a volume")
    check_expansion(sum(f.rows * f.columns * f.frames * f.bits // 8 for f in files), sum(file.size for file in files))
    if files[0].modality == "CT" and len({(file.slope, file.intercept) for file in files}) > 1:
        raise ReadError("CT slices of different rescale slope or intercept")
    if len({file.bits for file in files}) > 1:
        raise ReadError("slices of different bit depth")


def _matched(grid: Grid, conversion: Conversion, known: ScanMetadata) -> list[Volume]:
    """The converted volumes, each at its place; every slice that went in must have come out."""
    if grid.shear and known.modality != "ct":
        raise ReadError("slices are stacked askew along their columns; only CT is straightened")
    images = _as_stored(conversion)
    slices = sum(int(np.prod(image.shape[2:])) for image in images)
    if slices != grid.shape[2] * grid.volumes:
        raise ReadError(f"dcm2niix makes {slices} slices of {grid.shape[2] * grid.volumes}")
    if any(len(image.shape) < 3 or image.shape[:3] != grid.shape for image in images):
        raise ReadError("dcm2niix makes volumes of another size than the slices")
    found = match_volumes(images, grid, conversion.slices, known.facts.get("manufacturer") == "philips")
    if grid.shear:
        tilted = [path for path in conversion.volumes if "Tilt" in name_suffixes(path)]
        return [Volume(*straight) for straight in straightened(grid, images, tilted)]
    volumes: list[Volume] = []
    for image, number, planes in found:
        affine = checked_affine(image.affine, image.shape[:3], grid)
        if affine is None:
            raise ReadError("dcm2niix places the volume elsewhere than its headers do")
        scales = None if conversion.scales is None else [conversion.scales[plane] for plane in planes]
        volumes.append(Volume(image, number, affine, scales))
    return volumes


def _as_stored(conversion: Conversion) -> list[Any]:
    """The converted images without those that were interpolated (straightened or made even) and without overlays."""
    paths = [path for path in conversion.volumes if not _INTERPOLATED & name_suffixes(path)]
    return [
        nib.Nifti1Image.from_filename(path) for path in paths if not any(map(_OVERLAY.fullmatch, name_suffixes(path)))
    ]


def _mosaics(files: Sequence[FileHeader], conversion: Conversion) -> list[Volume]:
    images = _as_stored(conversion)
    for image in images:
        check_no_mosaic(image, files[0])
    check_own_tiles(images, conversion.slices)
    volumes = [Volume(image, number, image.affine) for image in images for number in range(_count(image))]
    if len(volumes) != len(files):
        raise ReadError(f"dcm2niix makes {len(volumes)} volumes of {len(files)} mosaics")
    return volumes


def _count(image: Any) -> int:
    return int(np.prod(image.shape[3:]))


def _check_varied(voxels: NDArray) -> None:
    if voxels.dtype.fields is not None:
        raise ReadError("colour slices are renderings, not a volume")
    check_voxels(voxels)
    if voxels.min() == voxels.max():
        raise ReadError("every voxel has the same value")


def _scan(volume: Volume, file: FileHeader, known: ScanMetadata, part: str) -> Scan:
    affine = volume.affine
    voxels = compact(volume.voxels())
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    if known.modality == "ct":
        voxels = without_padding(voxels, file)
    spacing, orientation = geometry(affine)
    channels = np.ascontiguousarray(voxels.T[None])
    warnings = known.warnings(voxels.shape, affine)
    return Scan(channels, spacing, affine, orientation, known.modality, known.facts, warnings, part)
