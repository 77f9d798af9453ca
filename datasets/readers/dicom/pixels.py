"""Is all of the pixel data there? By lengths in the file, before anything is decoded."""

import os
import struct
from typing import IO

import pydicom

from scanfoundry.datasets.readers.dicom.codestream import why_too_large
from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.scan import ReadError

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_VIDEO = "1.2.840.10008.1.2.4.10"  # MPEG and its heirs: one fragment may hold all frames


def expected_bytes(file: Survey) -> int:
    """Bytes that uncompressed pixels of this header take."""
    values = file.rows * file.columns * file.frames * file.samples
    if file.photometric == "YBR_FULL_422":
        values = values * 2 // 3
    return (values * file.bits + 7) // 8


def why_incomplete(file: Survey) -> str:
    """Why the pixels in `file` cannot be those that its header declares; '' where nothing speaks against it."""
    if file.pixel_length == 0:
        return "holds no pixel data"
    if min(file.rows, file.columns, file.frames, file.samples, file.bits) < 1:
        return "header declares no rows, columns, frames or bits"
    if file.syntax == _DEFLATED:
        return ""
    if file.pixel_length < 0:
        with file.path.open("rb") as opened:
            return _fragments(opened, file)
    if not _is_plain(file) and _begins_as_fragments(file):
        return "compressed pixels in an element that declares a length, as only plain ones have"
    if file.size < file.pixel_offset + file.pixel_length:
        return f"truncated: {file.pixel_length} bytes of pixels declared, {file.size - file.pixel_offset} in the file"
    if file.pixel_length < expected_bytes(file):
        return f"truncated: {expected_bytes(file)} bytes of pixels expected, {file.pixel_length} in the file"
    return ""


def _is_plain(file: Survey) -> bool:
    known = file.syntax in pydicom.uid.AllTransferSyntaxes
    return not known or not pydicom.uid.UID(file.syntax).is_encapsulated


def _begins_as_fragments(file: Survey) -> bool:
    with file.path.open("rb") as opened:
        opened.seek(file.pixel_offset)
        return opened.read(4) == _ITEM


def check_complete(file: Survey) -> None:
    """ReadError with what `why_incomplete` says."""
    reason = why_incomplete(file)
    if reason:
        raise ReadError(reason)


def _fragments(opened: IO[bytes], file: Survey) -> str:
    """Walk through the items of encapsulated pixels: offset table, fragments, delimiter."""
    at, found = file.pixel_offset, -1  # the first item is the offset table
    while True:
        opened.seek(at)
        start = opened.read(8)
        if start[:4] == _END:
            break
        if len(start) < 8 or start[:4] != _ITEM:
            return f"truncated: compressed pixels end after {max(0, found)} fragments, without their end mark"
        if found >= 0 and (reason := why_too_large(opened, at + 8, file)):
            return reason
        at += 8 + struct.unpack("<I", start[4:])[0]
        if at > os.fstat(opened.fileno()).st_size:
            return f"truncated: compressed pixels end within fragment {max(0, found) + 1}"
        found += 1
    if found < file.frames and not file.syntax.startswith(_VIDEO):
        return f"{file.frames} frames declared, {max(0, found)} compressed fragments in the file"
    return ""
