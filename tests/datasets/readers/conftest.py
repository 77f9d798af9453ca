"""Synthetic DICOM, written with pydicom: slices, enhanced objects, images; any syntax that can be encoded."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

from scanfoundry.datasets.readers.dicom import group, read_image, read_volume, scan_headers
from scanfoundry.datasets.readers.scan import Scan

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def texture(rows: int, columns: int, seed: int) -> np.ndarray:
    """A smooth picture of its own for every seed, (rows, columns) int16."""
    y, x = np.mgrid[:rows, :columns]
    return (500 + 300 * np.sin(x / 5 + seed) + 200 * np.cos(y / 7 - seed * 0.7)).astype(np.int16)


def header(**values: Any) -> Dataset:
    """What every object has; `values` by keyword go over it, None takes an element out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.77.1", "1.2.826.0.1.77.2"
    dataset.PatientID, dataset.PatientName, dataset.Modality = "K-4711", "Doe^Jane", "CT"
    dataset.Manufacturer, dataset.SeriesNumber, dataset.AcquisitionNumber = "SIEMENS", 3, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate, dataset.StudyTime, dataset.PatientPosition = "20200101", "101010", "HFS"
    for name, value in values.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def put_pixels(dataset: Dataset, pixels: np.ndarray, bits: int | None = None) -> None:
    """Pixels ([frames,] rows, columns[, 3]) and the elements that describe them."""
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    *frames, rows, columns = pixels.shape[:-1] if colour else pixels.shape
    dataset.Rows, dataset.Columns = rows, columns
    if frames:
        dataset.NumberOfFrames = frames[0]
    dataset.SamplesPerPixel = 3 if colour else 1
    if "PhotometricInterpretation" not in dataset:
        dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian, bare: bool = False) -> Path:
    """Write in a transfer syntax; bare: neither preamble nor meta information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if pydicom.uid.UID(syntax).is_compressed and not pydicom.uid.UID(syntax).is_deflated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian and "PixelData" in dataset and dataset.BitsAllocated > 8:
        words = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}")
        dataset.PixelData = words.astype(words.dtype.newbyteorder(">")).tobytes()
    if bare:
        implicit, little = syntax == "1.2.840.10008.1.2", syntax != ExplicitVRBigEndian
        del dataset.file_meta
        dataset.save_as(path, implicit_vr=implicit, little_endian=little)
    else:
        dataset.save_as(path, enforce_file_format=True)
    return path


def slices(
    folder: Path,
    positions: list[tuple[float, float, float]],
    orientation: tuple[float, ...] = AXIAL,
    each: Callable[[int], dict[str, Any]] = lambda _: {},
    syntax: str = ExplicitVRLittleEndian,
    pixels: Callable[[int], np.ndarray] = lambda number: texture(40, 36, number),
    **values: Any,
) -> list[Path]:
    """Classic slices at `positions` (mm, LPS): 40 x 36 pixels of 1.5 x 1.2 mm, in HU; `each` has values per slice."""
    written = []
    for number, position in enumerate(positions):
        scaled = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PixelSpacing": [1.5, 1.2], "SliceThickness": 2}
        dataset = header(**(scaled | values | {"InstanceNumber": number + 1} | each(number)))
        dataset.ImagePositionPatient = [float(f"{x:.6f}") for x in position]
        if "ImageOrientationPatient" not in dataset:
            dataset.ImageOrientationPatient = [float(f"{x:.9f}") for x in orientation]
        put_pixels(dataset, pixels(number))
        written.append(save(dataset, folder / f"{number:04d}.dcm", syntax))
    return written


def enhanced(
    positions: list[tuple[float, float, float]], pixels: np.ndarray, orientation: tuple[float, ...] = AXIAL
) -> Dataset:
    """An enhanced MR object: one frame (rows, columns) of `pixels` per position."""
    dataset = header(SOPClassUID=EnhancedMRImageStorage, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "T1", "NONE"])
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.2], 2
    plane.ImageOrientationPatient = list(orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    heights = sorted({position[2] for position in positions})
    for number, position in enumerate(positions):
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = list(position)
        content.InStackPositionNumber = heights.index(position[2]) + 1
        content.TemporalPositionIndex = number // len(heights) + 1
        content.DimensionIndexValues = [content.InStackPositionNumber, content.TemporalPositionIndex]
        content.StackID = "1"
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    put_pixels(dataset, pixels)
    return dataset


def load(root: Path) -> tuple[list[Scan], list[tuple[str, str, str]]]:
    """All scans below `root` and what was refused on grouping."""
    sources, refusals = group(scan_headers(sorted(path for path in root.rglob("*") if path.is_file())), root)
    readers = {"dicom-volume": read_volume, "dicom-image": read_image}
    return [scan for source in sources for scan in readers[source.kind](source)], refusals


@pytest.fixture(scope="session")
def dicom() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(
        axial=AXIAL, enhanced=enhanced, header=header, load=load, put_pixels=put_pixels, save=save, slices=slices,
        texture=texture,
    )  # fmt: skip
