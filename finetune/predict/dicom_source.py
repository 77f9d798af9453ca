"""The DICOM files that a scan came from, and where each of their frames lies in the scan's voxels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers import ReadError, Scan, Source
from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers
from scanfoundry.datasets.readers.dicom.series.grid import Plane, stack
from scanfoundry.datasets.readers.dicom.series.planes import is_mosaic, planes_of
from scanfoundry.datasets.readers.geometry import LPS_TO_RAS

_NEEDED = ("SOPClassUID", "SOPInstanceUID")
# Objects must repeat these of the patient and the study; old files lack some, and empty is allowed (type 2). Where
# somebody has emptied the study's UID, the object joins the same nameless study.
_MAY_BE_EMPTY = (
    *("StudyInstanceUID", "SeriesInstanceUID"),
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
OFF_GRID = 0.1  # of a slice's distance, between a frame and the scan's slice that it is taken for
_INSTEAD = "take --format nifti"

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FramePlace:
    """Voxel indices (x, y, z) = (W, H, D) of a frame's first pixel, and the steps to the next column and row."""

    first: Vector
    column: Vector
    row: Vector

    @property
    def across(self) -> int:
        """The voxel axis (0 = x, 1 = y, 2 = z) that the frame lies across."""
        return int(np.argmin(np.abs(self.column) + np.abs(self.row)))


@dataclass(frozen=True)
class Referenced:
    """headers: of every file, without pixels. places: one per frame, in the order of files and frames.
    step: from slice to slice in mm, where there are several."""

    headers: list[Dataset]
    places: list[FramePlace]
    rows: int
    columns: int
    step: float | None


def referenced(source: Source, scan: Scan) -> Referenced:
    """What an object about the scan refers to; UserError where its frames are not those of the files."""
    files = scan_headers(source.paths)
    if scan.part:
        raise UserError(f"a series of several volumes: DICOM objects are made of one volume; {_INSTEAD}")
    if any(is_mosaic(file) for file in files):
        raise UserError(f"a mosaic: its slices are no frames that a DICOM object could refer to; {_INSTEAD}")
    headers = [_header(path) for path in source.paths]
    rows, columns = files[0].rows, files[0].columns
    if scan.affine is None:
        return Referenced(headers, _images(scan), rows, columns, None)
    try:
        planes = [plane for file in files for plane in planes_of(file)]
        grid = stack(planes)
    except ReadError as error:
        raise UserError(f"{error}; {_INSTEAD}") from error
    places = [_place(plane, scan) for plane in planes]
    step = float(np.linalg.norm(grid.affine[:3, 2])) if len(planes) > 1 else None
    return Referenced(headers, places, rows, columns, step)


def labels_of_frames(labels: npt.NDArray[np.uint8], source: Referenced) -> npt.NDArray[np.uint8]:
    """A label map (D, H, W) as the files' frames (N, rows, columns): each pixel gets its voxel's label.

    Slices that were straightened (gantry tilt) lie between voxels along their columns: there the nearest is taken.
    """
    c, r = np.meshgrid(np.arange(source.columns), np.arange(source.rows))
    frames = np.zeros((len(source.places), source.rows, source.columns), np.uint8)
    limit = np.array(labels.shape[::-1])[:, None, None] - 1
    for frame, place in zip(frames, source.places, strict=True):
        voxels = place.first[:, None, None] + place.column[:, None, None] * c + place.row[:, None, None] * r
        x, y, z = np.clip(np.rint(voxels).astype(np.int64), 0, limit)
        frame[...] = labels[z, y, x]
    return frames


def _header(path: object) -> Dataset:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)  # type: ignore[arg-type]
    except Exception as error:  # whatever damage makes pydicom raise
        raise UserError("damaged DICOM header") from error
    for name in _NEEDED:
        if not header.get(name):
            setattr(header, name, header.file_meta.get(f"MediaStorage{name}", ""))
    missing = [name for name in _NEEDED if not header.get(name)]
    if missing:
        raise UserError(f"its files have no {missing[0]}, so that nothing can refer to them; {_INSTEAD}")
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header


def _images(scan: Scan) -> list[FramePlace]:
    """Of frames without a place in the world, which are the scan's slices as they are."""
    x, y, z = np.eye(3)
    return [FramePlace(z * number, x, y) for number in range(scan.voxels.shape[1])]


def _place(plane: Plane, scan: Scan) -> FramePlace:
    """Through the world: pixel to patient (PS3.3, C.7.6.2.1.1), patient to voxel."""
    assert scan.affine is not None
    into = np.linalg.inv(scan.affine) @ LPS_TO_RAS
    along_row, along_column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    first = into[:3, :3] @ np.array(plane.position) + into[:3, 3]
    column = into[:3, :3] @ along_row * plane.spacing[1]
    row = into[:3, :3] @ along_column * plane.spacing[0]
    steps = np.stack([column, row])
    if not np.allclose(np.abs(steps).round().sum(1), 1) or not np.allclose(steps, steps.round(), atol=0.01):
        raise UserError(f"its frames do not lie along the scan's voxels; {_INSTEAD}")
    across = np.abs(steps.round()).sum(0) == 0
    reach = first + column * (plane.columns - 1) + row * (plane.rows - 1)
    outside = (
        np.minimum(first, reach).min() < -0.6
        or (np.maximum(first, reach) > np.array(scan.voxels.shape[:0:-1]) - 0.4).any()
    )
    if outside or np.abs(first - first.round())[across].max() > OFF_GRID:
        raise UserError(f"its frames do not lie on the scan's slices; {_INSTEAD}")
    return FramePlace(first, steps.round()[0], steps.round()[1])
