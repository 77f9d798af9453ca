"""Whether all pixels of a file are there, and which of several files of one instance to read."""

import filecmp
import os
import struct
from collections.abc import Sequence
from typing import IO

import numpy as np
import pydicom
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.values import suppress_warnings
from scanfoundry.datasets.readers.dicom.pixels.codestream import why_too_large
from scanfoundry.datasets.readers.dicom.pixels.decode import frames_of
from scanfoundry.datasets.readers.scan import ReadError

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_VIDEO = "1.2.840.10008.1.2.4.10"  # MPEG and its heirs: one fragment may hold all frames


def expected_bytes(file: FileHeader) -> int:
    """Bytes that uncompressed pixels of this header take."""
    values = file.rows * file.columns * file.frames * file.samples
    if file.photometric == "YBR_FULL_422":
        values = values * 2 // 3
    return (values * file.bits + 7) // 8


def why_incomplete(file: FileHeader) -> str:
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


def _is_plain(file: FileHeader) -> bool:
    known = file.syntax in pydicom.uid.AllTransferSyntaxes
    return not known or not pydicom.uid.UID(file.syntax).is_encapsulated


def _begins_as_fragments(file: FileHeader) -> bool:
    with file.path.open("rb") as opened:
        opened.seek(file.pixel_offset)
        return opened.read(4) == _ITEM


def check_complete(file: FileHeader) -> None:
    """ReadError with what `why_incomplete` says."""
    reason = why_incomplete(file)
    if reason:
        raise ReadError(reason)


def _fragments(opened: IO[bytes], file: FileHeader) -> str:
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


_TAIL = 512  # bytes: a file that was never filled to its end is left as zeros
_ALIKE = 0.99  # correlation of a picture with what lossy compression leaves of it


def files_to_read(copies: Sequence[FileHeader]) -> list[FileHeader]:
    """For each of the `copies` the file to read in its place: itself, or another that holds the same picture.

    Nothing is decoded where all copies are alike. Slices of one place whose pixels differ are different slices, of
    which none is left out. Of anything else the first that is whole and can be decoded is read.
    """
    whole = [file for file in copies if not why_incomplete(file)] or list(copies)
    if all(filecmp.cmp(whole[0].path, other.path, shallow=False) for other in whole[1:]):
        return [whole[0]] * len(copies)
    if all(file.frames == file.samples == 1 and file.position is not None for file in copies):
        return _pictures(copies, whole)
    decoded = [file for file in whole if _can_be_decoded(file)] or whole
    filled = [file for file in decoded if not _ends_in_zeros(file)] or decoded
    return [filled[0]] * len(copies)


def _pictures(copies: Sequence[FileHeader], whole: Sequence[FileHeader]) -> list[FileHeader]:
    """A file for each different picture; those that are damaged are left out for the first sound one."""
    found: list[tuple[FileHeader, NDArray]] = []
    instead: dict[int, FileHeader] = {}
    for file in sorted(whole, key=lambda file: file.lossy):
        pixels = _only_frame(file)
        if pixels is None:
            continue
        for place, (kept, others) in enumerate(found):
            if _is_damaged(others, pixels):
                instead |= {key: file for key, value in instead.items() if value is kept}
                found[place] = (file, pixels)
            elif not (_is_damaged(pixels, others) or _are_one(pixels, others, file, kept)):
                continue
            instead[id(file)] = found[place][0]
            break
        else:
            found.append((file, pixels))
            instead[id(file)] = file
    first = found[0][0] if found else whole[0]
    return [instead.get(id(file), first) for file in copies]


def _are_one(pixels: NDArray, others: NDArray, file: FileHeader, kept: FileHeader) -> bool:
    if pixels.shape != others.shape or _scale(file) != _scale(kept):
        return False
    if np.array_equal(pixels, others):
        return True
    varied = file.lossy and pixels.std() > 0 and others.std() > 0
    return bool(varied and np.corrcoef(pixels.ravel(), others.ravel())[0, 1] > _ALIKE)


def _scale(file: FileHeader) -> tuple[float, float]:
    return 1.0 if file.slope is None else file.slope, file.intercept or 0.0


def _is_damaged(pixels: NDArray, others: NDArray) -> bool:
    """Whether `pixels` are the `others` but for places that were never filled, and are zeros."""
    return pixels.shape == others.shape and not pixels[pixels != others].any() and not np.array_equal(pixels, others)


def _only_frame(file: FileHeader) -> NDArray | None:
    """The only frame (H, W); None where there is not one that can be decoded."""
    try:
        with suppress_warnings():
            (pixels,) = frames_of(file)
            return pixels
    except Exception:  # decoders raise whatever the damage makes them
        return None


def _can_be_decoded(file: FileHeader) -> bool:
    if file.pixel_length >= 0:
        return True
    try:
        with suppress_warnings():
            return sum(1 for _ in frames_of(file)) == file.frames
    except Exception:  # decoders raise whatever the damage makes them
        return False


def _ends_in_zeros(file: FileHeader) -> bool:
    """Whether the pixels end in a block of zeros, and the file with them."""
    if file.pixel_length < _TAIL:
        return False
    with file.path.open("rb") as opened:
        opened.seek(-_TAIL, 2)
        return not any(opened.read(_TAIL))
