"""Voxel size of a TIFF, where OME or ImageJ wrote it down."""

import math
from typing import Any
from xml.etree import ElementTree

from tifffile import TiffFile

from scanfoundry.configs.geometry import Spacing3D
from scanfoundry.datasets.readers.scan import ReadError

_MM = {
    "m": 1000.0,
    "cm": 10.0,
    "mm": 1.0,
    "µm": 1e-3,
    "um": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
    "inch": 25.4,
}
_UNKNOWN = (1.0, 1.0, 1.0)


def has_slices(tiff: TiffFile) -> bool:
    """Whether ImageJ gives the distance of the pages, though it calls them neither slices nor frames."""
    return bool((tiff.imagej_metadata or {}).get("spacing"))


def spacing_of(tiff: TiffFile, number: int) -> Spacing3D:
    """(D, H, W) in mm of the image `number` in the file; 1 for each that the file does not know.

    Raises:
        ReadError: it is no size at all (zero, negative, NaN).
    """
    spacing = _ome(tiff.ome_metadata, number) if tiff.is_ome and tiff.ome_metadata else _imagej(tiff)
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ReadError(f"voxels of size {spacing}")
    return spacing


def _ome(text: str, number: int) -> Spacing3D:
    try:
        found = [node for node in ElementTree.fromstring(text).iter() if node.tag.rpartition("}")[2] == "Pixels"]
    except ElementTree.ParseError as error:
        raise ReadError("its OME description is damaged") from error
    if number >= len(found):
        return _UNKNOWN
    z, y, x = (_length(found[number].attrib, axis) for axis in "ZYX")
    return z, y, x


def _length(pixels: dict[str, str], axis: str) -> float:
    size = pixels.get(f"PhysicalSize{axis}")
    scale = _MM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").strip().lower())
    return 1.0 if size is None or scale is None else float(size) * scale


def _imagej(tiff: TiffFile) -> Spacing3D:
    facts = tiff.imagej_metadata
    if not facts:
        return _UNKNOWN
    unit = str(facts.get("unit", "")).replace("\\u00B5", "µ").strip().lower()
    scale = _MM.get(unit)
    if scale is None:
        return _UNKNOWN
    tags: Any = tiff.pages.first.tags
    x, y = (_step(tags.valueof(f"{axis}Resolution")) for axis in "XY")
    return float(facts.get("spacing", 1 / scale)) * scale, y * scale if y else 1.0, x * scale if x else 1.0


def _step(resolution: tuple[int, int] | None) -> float:
    """Units per pixel from pixels per unit; 0 where unknown."""
    if not resolution or not resolution[0]:
        return 0.0
    return resolution[1] / resolution[0]
