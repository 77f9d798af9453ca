"""Scan the headers of many files: what each file is. No pixel is read, and no exception leaves."""

import hashlib
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset

from scanfoundry.datasets.readers.dicom.headers.attributes import TAGS, attribute_values
from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.raw_elements import UNDEFINED, element_length, is_dicom
from scanfoundry.datasets.readers.dicom.headers.sop_classes import DICOMDIR, dicom_modality
from scanfoundry.datasets.readers.dicom.headers.values import integer, number, numbers, suppress_warnings, text, texts
from scanfoundry.datasets.readers.guard import check_expansion
from scanfoundry.datasets.readers.scan import ReadError

HEAD_BYTES = 4096
_META = 132  # behind preamble and prefix
_PIECE = 1 << 20
_READ = (
    "ImageType SOPClassUID SOPInstanceUID Modality Manufacturer PatientID IssuerOfPatientID StudyInstanceUID "
    "SeriesInstanceUID SeriesNumber InstanceNumber ImagePositionPatient ImageOrientationPatient SamplesPerPixel "
    "PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing SpacingBetweenSlices BitsAllocated BitsStored "
    "PixelRepresentation RescaleSlope RescaleIntercept PixelPaddingValue PixelPaddingRangeLimit "
    "LossyImageCompression PerFrameFunctionalGroupsSequence DirectoryRecordSequence"
)
_TAGS = [*(int(tag_for_keyword(name) or 0) for name in _READ.split()), *TAGS]
_LOSSY_SYNTAXES = frozenset(
    "1.2.840.10008.1.2.4." + end for end in ("50", "51", "81", "91", "93", "110", "112", "203", "204", "205")
)
_ENDINGS = (".dcm", ".dicom", ".ima")


def scan_headers(paths: Iterable[Path]) -> list[FileHeader]:
    """Scan the headers of files, in order. Worker processes get a part of the files each."""
    known: dict[bytes, bytes] = {}
    with suppress_warnings():
        return [_look(Path(path), known) for path in paths]


def _look(path: Path, known: dict[bytes, bytes]) -> FileHeader:
    try:
        status = path.stat()
        size, modified = status.st_size, status.st_mtime_ns
        with path.open("rb") as file:
            if not is_dicom(file.read(HEAD_BYTES), size):
                claims = path.suffix.lower() in _ENDINGS
                return FileHeader(path, "pretended" if claims else "other", size, modified)
            file.seek(0)
            if _is_bomb(file, size):
                return FileHeader(path, "bomb", size, modified)
            return _parse(path, file, size, modified, known)
    except OSError as error:
        if error.errno is not None:
            return FileHeader(path, "unreadable")
        return FileHeader(path, "damaged", size, modified)  # pydicom's word for a sequence that ends early
    except Exception:  # whatever damage makes pydicom raise
        return FileHeader(path, "damaged", size, modified)


def _parse(path: Path, file: IO[bytes], size: int, modified: int, known: dict[bytes, bytes]) -> FileHeader:
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
    attributes = attribute_values(header, known)
    meta = getattr(header, "file_meta", Dataset())
    sop_class = text(header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")
    if "DirectoryRecordSequence" in header:
        sop_class = DICOMDIR
    offset, length, loose = _pixels(header, file)
    return FileHeader(
        path, "dicom", size, modified,
        patient=text(header, "PatientID"),
        issuer=text(header, "IssuerOfPatientID"),
        study=text(header, "StudyInstanceUID"),
        series=text(header, "SeriesInstanceUID"),
        sop=text(header, "SOPInstanceUID") or text(meta, "MediaStorageSOPInstanceUID") or _content(path),
        sop_class=sop_class,
        modality=dicom_modality(sop_class, text(header, "Modality").upper()),
        image_type=tuple(part.upper() for part in texts(header, "ImageType")),
        manufacturer=text(header, "Manufacturer"),
        series_number=integer(header, "SeriesNumber", 0),
        instance=integer(header, "InstanceNumber", 0),
        rows=integer(header, "Rows", 0),
        columns=integer(header, "Columns", 0),
        frames=integer(header, "NumberOfFrames", 1),
        samples=integer(header, "SamplesPerPixel", 1),
        bits=integer(header, "BitsAllocated", 0),
        stored_bits=integer(header, "BitsStored", 0),
        signed=integer(header, "PixelRepresentation", 0) == 1,
        photometric=text(header, "PhotometricInterpretation"),
        position=numbers(header, "ImagePositionPatient", 3),
        orientation=numbers(header, "ImageOrientationPatient", 6),
        spacing=numbers(header, "PixelSpacing", 2),
        between=number(header, "SpacingBetweenSlices"),
        slope=number(header, "RescaleSlope"),
        intercept=number(header, "RescaleIntercept"),
        padding=_padding(header),
        lossy=text(header, "LossyImageCompression") == "01" or text(meta, "TransferSyntaxUID") in _LOSSY_SYNTAXES,
        attributes=attributes,
        syntax=text(meta, "TransferSyntaxUID"),
        functional_groups="PerFrameFunctionalGroupsSequence" in header,
        pixel_offset=offset,
        pixel_length=length,
        loose_pixels=loose,
    )  # fmt: skip


def _is_bomb(file: IO[bytes], size: int) -> bool:
    """Whether a deflated file is too much: pydicom inflates it as a whole, for its header too."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if pydicom.uid.DeflatedExplicitVRLittleEndian.encode() not in head or head[_META : _META + 4] != b"\2\0\0\0":
        return False
    file.seek(_META + 12 + struct.unpack_from("<I", head, _META + 8)[0])
    inflate, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while piece := inflate.unconsumed_tail or file.read(_PIECE):
            inflated += len(inflate.decompress(piece, _PIECE))
            check_expansion(inflated, size)
    except ReadError:
        return True
    except zlib.error:  # for pydicom to find
        return False
    finally:
        file.seek(0)
    return False


def _padding(header: FileDataset) -> tuple[int, int] | None:
    found = number(header, "PixelPaddingValue")
    if found is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit")
    ends = (int(found), int(found if limit is None else limit))
    return min(ends), max(ends)


def _pixels(header: FileDataset, file: IO[bytes]) -> tuple[int, int, bool]:
    """(offset, length, whether the element is loose) of the pixels; pydicom has stopped in front of their element."""
    if getattr(header.file_meta, "TransferSyntaxUID", "") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return 0, -1, False  # found on reading: the file as it lies says nothing of it
    at = file.tell()
    start = file.read(12)
    implicit, little = header.original_encoding
    order = "<" if little else ">"
    if len(start) < 12 or start[:2] != (b"\xe0\x7f" if little else b"\x7f\xe0"):
        return 0, 0, False
    value_at, length = element_length(start, 0, order, not implicit)
    loose = value_at < 0 and not start[4:6].isalpha()  # what pydicom takes for an implicit element
    if loose:
        value_at, length = element_length(start, 0, order, False)
    if value_at < 0:
        return 0, 0, False
    return at + value_at, -1 if length == UNDEFINED else length, loose


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return "content-" + hashlib.file_digest(file, "blake2b").hexdigest()[:40]
