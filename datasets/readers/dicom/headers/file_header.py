"""What the header of one DICOM file says, in short."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileHeader:
    """One file's header in short. It travels between processes.

    Attributes:
        state: 'dicom', 'other' (no DICOM), 'pretended' (no DICOM but by its name), 'damaged' (DICOM that does not
            parse), 'bomb' (deflated, and far too much) or 'unreadable' (by the system).
        sop: SOPInstanceUID; where a file has none, a hash of its bytes, so that copies are still known.
        position: ImagePositionPatient in mm (LPS); orientation: direction of a row, then of a column.
        spacing: PixelSpacing in mm: between rows, between columns.
        pixel_length: bytes of the pixel element, -1 in fragments, 0 where there is none; pixel_offset: where they
            start.
        loose_pixels: the pixel element is written as an implicit one in an explicit file.
        padding: stored values that mark padding: lowest and highest.
        attributes: raw values of what may tell acquisitions apart, in the order of `attributes.TAGS`.
    """

    path: Path
    state: str
    size: int = 0
    modified: int = 0
    patient: str = ""
    issuer: str = ""
    study: str = ""
    series: str = ""
    sop: str = ""
    sop_class: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    manufacturer: str = ""
    series_number: int = 0
    instance: int = 0
    rows: int = 0
    columns: int = 0
    frames: int = 1
    samples: int = 1
    bits: int = 0
    stored_bits: int = 0
    signed: bool = False
    photometric: str = ""
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    between: float | None = None
    slope: float | None = None
    intercept: float | None = None
    padding: tuple[int, int] | None = None
    lossy: bool = False
    attributes: tuple[bytes, ...] = ()
    syntax: str = ""
    functional_groups: bool = False
    pixel_offset: int = 0
    pixel_length: int = 0
    loose_pixels: bool = False

    @property
    def has_pixels(self) -> bool:
        """Whether there is a pixel element with anything in it."""
        return self.pixel_length != 0
