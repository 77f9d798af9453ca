"""How large a compressed frame will be, by its own header: decoders believe that and not the DICOM header."""

import struct
from typing import IO

from scanforge.datasets.readers.dicom.headers import Survey

ROOM = 1 << 26  # values that a frame may have beyond those of its header: what cannot hurt is left to the decoder
_HEAD = 4096
_SEGMENTS = 64  # of a JPEG that are looked at; each is at most 64 KiB
# Start of frame, of every process of JPEG and of JPEG-LS.
_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def why_too_large(opened: IO[bytes], at: int, file: Survey) -> str:
    """Why the fragment at `at` must not be decoded: it holds a picture far larger than the header says; else ''."""
    values = values_of(opened, at)
    if values > ROOM + 4 * file.rows * file.columns * file.samples:
        declared = f"{file.rows} x {file.columns}"
        return f"a compressed frame of {values} values where the header declares {declared}: a decompression bomb"
    return ""


def values_of(opened: IO[bytes], at: int) -> int:
    """Samples of the picture in the stream that begins at `at`; 0 where nothing is known of it."""
    opened.seek(at)
    head = opened.read(_HEAD)
    if head[:2] == b"\xff\xd8":
        return _jpeg(opened, at + 2)
    size = head.find(b"\xff\x4f\xff\x51")  # JPEG 2000, bare or in a file of boxes
    if 0 <= size <= len(head) - 42 and (size == 0 or head[4:8] == b"jP  "):
        right, bottom, left, top = struct.unpack_from(">4I", head, size + 8)
        (components,) = struct.unpack_from(">H", head, size + 40)
        return max(0, right - left) * max(0, bottom - top) * components
    return 0


def _jpeg(opened: IO[bytes], at: int) -> int:
    for _ in range(_SEGMENTS):
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
