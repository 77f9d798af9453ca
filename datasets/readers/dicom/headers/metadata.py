"""What may be known of a scan: facts from closed vocabularies, and warnings about what a person should look at."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.identity import identifying_strings_of, short_names
from scanfoundry.datasets.readers.dicom.headers.sop_classes import (
    CT,
    dicom_modality,
    is_secondary_capture,
    short_modality,
)
from scanfoundry.datasets.readers.dicom.headers.values import items, number, suppress_warnings, text
from scanfoundry.datasets.readers.dicom.headers.vocabularies import (
    BODY_PARTS,
    HEAD_PARTS,
    HEAD_WORDS,
    model_of,
    sequence_of,
    vendor_of,
)
from scanfoundry.datasets.readers.scan import ReadError

# A face needs this much room, mm: the shortest and the middle extent of the volume.
FACE_SHORTEST, FACE_MIDDLE = 50.0, 120.0
_DEFACED = re.compile(r"defac|skull.?strip|recogni[sz]able visual features", re.IGNORECASE)
_CLEAN_FACES = "113101"  # code of the option "clean recognizable visual features"


@dataclass(frozen=True)
class ScanMetadata:
    """What a header lets us keep, and what the warnings depend on. `thickness` is that of a slice, in mm."""

    modality: str
    facts: dict[str, str]
    thickness: float | None
    burned_in: bool
    head: bool
    faceless: bool

    def warnings(self, shape: Sequence[int], affine: NDArray[np.float64] | None) -> tuple[str, ...]:
        """The warnings (of `WARNINGS`) about a scan.

        Args:
            shape: of the voxels (x, y, z).
            affine: (4, 4) to mm; None for an image, which shows no face.
        """
        found = ["burned_in_annotation"] if self.burned_in else []
        if affine is not None and self.head and not self.faceless and self.modality in ("ct", "mr", "pt"):
            extents = sorted(np.linalg.norm(affine[:3, :3], axis=0) * np.asarray(shape[:3]))
            if extents[0] >= FACE_SHORTEST and extents[1] >= FACE_MIDDLE:
                found.append("face")
        return tuple(found)


def metadata_of(file: FileHeader) -> ScanMetadata:
    """What is known of the scan that `file` belongs to.

    Raises:
        ReadError: its header cannot be read any more.
    """
    try:
        with suppress_warnings():
            header = pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
            return metadata_of_dataset(header, file)
    except Exception as error:  # whatever damage makes pydicom raise
        raise ReadError("damaged DICOM header") from error


def metadata_of_dataset(header: Dataset, file: FileHeader) -> ScanMetadata:
    """As `metadata_of`, of a parsed header."""
    modality = short_modality(file.sop_class, file.modality)
    capture = is_secondary_capture(file.sop_class)
    if modality == "ct" and file.sop_class != CT and capture and file.position is None:
        modality = "ot"  # a picture of a CT is not in Hounsfield units
    vendor = vendor_of(text(header, "Manufacturer"))
    named = text(header, "ManufacturerModelName") if vendor else ""
    model = model_of(vendor, named, identifying_strings_of(header), short_names(header)) if named else ""
    part = re.sub(r"[\W_]", "", text(header, "BodyPartExamined").upper())
    words = " ".join(text(header, name) for name in ("SeriesDescription", "ProtocolName", "StudyDescription"))
    facts = {
        "manufacturer": vendor,
        "model": model,
        "body_part": part.lower() if part in BODY_PARTS else "",
        "sequence": _sequence(header) if modality == "mr" else "",
    }
    annotated = text(header, "BurnedInAnnotation").upper()
    suspect = capture or dicom_modality(file.sop_class, file.modality) in ("US", "IVUS", "ES", "XC", "OT")
    return ScanMetadata(
        modality,
        {name: fact for name, fact in facts.items() if fact},
        number(header, "SliceThickness"),
        annotated == "YES" or (annotated != "NO" and suspect and file.position is None),
        part in HEAD_PARTS or (part not in BODY_PARTS and HEAD_WORDS.search(words.replace("_", " ")) is not None),
        _faceless(header),
    )


def _faceless(header: Dataset) -> bool:
    codes = [text(item, "CodeValue") for item in items(header, "DeidentificationMethodCodeSequence")]
    method = _DEFACED.search(text(header, "DeidentificationMethod"))
    return text(header, "RecognizableVisualFeatures").upper() == "NO" or _CLEAN_FACES in codes or method is not None


def _sequence(header: Dataset) -> str:
    for name in ("SeriesDescription", "ProtocolName", "SequenceName"):
        found = sequence_of(text(header, name))
        if found:
            return found
    repetition, echo = number(header, "RepetitionTime"), number(header, "EchoTime")
    inversion = number(header, "InversionTime") or 0.0
    if repetition is None or echo is None or "SE" not in text(header, "ScanningSequence"):
        return ""
    if inversion > 1500 and echo > 60:
        return "flair"
    if repetition < 1000:
        return "t1" if echo < 30 else ""
    if repetition > 1500:
        return "t2" if echo > 60 else "pd" if echo < 40 else ""
    return ""
