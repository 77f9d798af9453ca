"""Pixel spacing of an image, wherever its kind of header keeps it."""

from pydicom.dataset import Dataset

from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.values import items, number, numbers, whole

_CENTIMETRES = 3  # code of an ultrasound region's unit


def pixel_spacing(header: Dataset, file: Survey) -> tuple[float, float]:
    """(between rows, between columns) in mm; 1 where nothing is known.

    At the detector where the patient's plane is not calibrated. An ultrasound's counts if all its spatial regions
    share it; a text or Doppler panel has none.
    """
    found = file.spacing or _shared(header)
    found = found or numbers(header, "ImagerPixelSpacing", 2) or numbers(header, "NominalScannedPixelSpacing", 2)
    found = found or _ultrasound(header)
    return (found[0], found[1]) if found is not None and min(found) > 0 else (1.0, 1.0)


def _shared(header: Dataset) -> tuple[float, ...] | None:
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in items(header, groups)[:1]:
            for measures in items(group, "PixelMeasuresSequence"):
                return numbers(measures, "PixelSpacing", 2)
    return None


def _ultrasound(header: Dataset) -> tuple[float, float] | None:
    found = set()
    for region in items(header, "SequenceOfUltrasoundRegions"):
        units = {whole(region, f"PhysicalUnits{axis}Direction", 0) for axis in "XY"}
        x, y = number(region, "PhysicalDeltaX"), number(region, "PhysicalDeltaY")
        if units == {_CENTIMETRES} and x and y:
            found.add((round(abs(y) * 10, 6), round(abs(x) * 10, 6)))
    return found.pop() if len(found) == 1 else None
