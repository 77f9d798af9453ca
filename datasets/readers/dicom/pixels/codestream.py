"""How large a compressed frame will be, by its own header: decoders believe that and not the DICOM header."""

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import IO

import pydicom
from pydicom.encaps import generate_frames

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.guard import check_expansion
from scanfoundry.datasets.readers.scan import ReadError

ROOM = 1 << 20  # values that a frame may have beyond those of its header: too few to hurt
_SYNTAXES = frozenset(
    "1.2.840.10008.1.2.4." + end for end in ("50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203")
)
_PARTS = 4096  # segments of a JPEG, boxes of a JP2, that are looked at
# Start of frame, of every process of JPEG and of JPEG-LS.
_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_SIZE = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream, with the segment of its size
_JP2 = b"\0\0\0\x0cjP  "


class FrameTooLargeError(ReadError):
    """A frame that no decoder may be given."""


def check_frame_sizes(file: FileHeader) -> None:
    """FrameTooLargeError where a frame, its fragments joined as pydicom joins them, is far larger than declared.

    ReadError where all that is declared is too much; raises whatever damage of the fragments makes pydicom raise.
    """
    check_expansion(file.rows * file.columns * file.frames * file.samples * max(1, file.bits // 8), file.size)
    if file.syntax not in _SYNTAXES:
        return
    with file.path.open("rb") as opened:
        for frame in _frames(opened, file):
            if reason := why_too_large(BytesIO(frame), 0, file):
                raise FrameTooLargeError(reason)
            if not values_of(BytesIO(frame), 0):
                known = frame.startswith((b"\xff\xd8", _SIZE, _JP2))
                raise (FrameTooLargeError if known else ReadError)("compressed pixels cannot be decoded")


def _frames(opened: IO[bytes], file: FileHeader) -> Iterator[bytes]:
    keywords = ["ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
    header = pydicom.dcmread(opened, stop_before_pixels=True, force=True, specific_tags=keywords)
    tables = [header.get(keyword) for keyword in keywords]
    opened.seek(file.pixel_offset)
    offsets = (tables[0], tables[1]) if all(tables) else None
    yield from generate_frames(opened, number_of_frames=file.frames, extended_offsets=offsets)


def why_too_large(opened: IO[bytes], at: int, file: FileHeader) -> str:
    """Why the fragment at `at` must not be decoded: it holds a picture far larger than the header says; else ''."""
    values = values_of(opened, at)
    if values > ROOM + 4 * file.rows * file.columns * file.samples:
        declared = f"{file.rows} x {file.columns}"
        return f"a compressed frame of {values} values where the header declares {declared}: a decompression bomb"
    return ""


def values_of(opened: IO[bytes], at: int) -> int:
    """Samples of the picture in the stream that begins at `at`; 0 where nothing is known of it."""
    opened.seek(at)
    head = opened.read(len(_JP2))
    if head[:2] == b"\xff\xd8":
        return _jpeg(opened, at + 2)
    if head[:4] == _SIZE:
        return _jpeg2000(opened, at)
    return _boxes(opened, at) if head == _JP2 else 0


def _jpeg2000(opened: IO[bytes], at: int) -> int:
    opened.seek(at)
    head = opened.read(42)
    if len(head) < 42 or head[:4] != _SIZE:
        return 0
    right, bottom, left, top = struct.unpack_from(">4I", head, 8)
    (components,) = struct.unpack_from(">H", head, 40)
    return max(0, right - left) * max(0, bottom - top) * int(components)


def _boxes(opened: IO[bytes], at: int) -> int:
    """The codestream of a JP2 file lies in a box of its own behind others, which may hold anything."""
    for _ in range(_PARTS):
        opened.seek(at)
        head = opened.read(16)
        if len(head) < 8:
            return 0
        length, start = struct.unpack_from(">I", head)[0], 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack_from(">Q", head, 8)[0], 16
        if head[4:8] == b"jp2c":
            return _jpeg2000(opened, at + start)
        if length < start:
            return 0
        at += length
    return 0


def _jpeg(opened: IO[bytes], at: int) -> int:
    for _ in range(_PARTS):
        opened.seek(at)
        head = opened.read(10)
        if len(head) < 10 or head[0] != 0xFF:
            return 0
        if head[1] == 0xFF:  # a fill byte
            at += 1
        elif head[1] in _FRAME:
            rows, columns, components = struct.unpack_from(">HHB", head, 5)
            return int(rows * columns * components)
        else:
            at += 2 + struct.unpack_from(">H", head, 2)[0]
    return 0
