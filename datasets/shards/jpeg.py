"""JPEG files that stay JPEG: the coded image without metadata, and its decoding.

What is kept decides how the image is decoded: frame, tables, restart interval, scans, and of the markers of JFIF and
Adobe the part by which a decoder knows the colour space (ITU-T T.81, annex B; T.871). All else goes: EXIF, XMP, ICC
profiles, thumbnails, comments, fill bytes, and what follows the image.

The decoder is imagecodecs', which takes two thirds of the time of pillow's, and half of it for one channel. What it
gives is compared with what the reader, pillow, gave before a JPEG is kept.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD}  # of Huffman and arithmetic coding, quantisation; lines, restart interval
_METADATA = {*range(0xE0, 0xF0), 0xFE}  # APP0 to APP15, comment
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"  # of square pixels, without a thumbnail
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # and the byte that names the transform
# Where coded data end: at a marker that is no stuffed zero and no restart, with the fill bytes before it.
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_LARGEST = 1 << 28  # bytes of a file that is looked at


class KeptJpeg(NamedTuple):
    """A JPEG without metadata, and the crc32 of the pixels (H, W, C) that it decodes to."""

    payload: bytes
    pixels: int


def strip_jpeg(content: bytes) -> bytes | None:
    """A JPEG without metadata.

    Args:
        content: of a file.

    Returns:
        The same image from SOI to EOI; None where the file is not built as a JPEG of one frame is.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    parts, place, frames, scans = [b"\xff\xd8"], 2, 0, 0
    jfif = adobe = False
    while True:
        start = place
        while content[place : place + 1] == b"\xff":  # any number of them may precede a marker
            place += 1
        if place == start or place >= len(content):
            return None
        marker = content[place]
        if marker == _EOI:
            return b"".join([*parts, b"\xff\xd9"]) if frames == 1 and scans else None
        length = int.from_bytes(content[place + 1 : place + 3], "big")
        segment = content[place + 1 : place + 1 + length]
        place += 1 + length
        if length < 2 or len(segment) < length:
            return None
        if marker in _METADATA:
            if marker == 0xE0 and segment[2:7] == b"JFIF\x00" and not jfif:
                jfif = True
                parts.append(_JFIF)
            elif marker == 0xEE and segment[2:7] == b"Adobe" and length >= 14 and not adobe:
                adobe = True
                parts.append(_ADOBE + segment[13:14])
            continue
        if marker not in _FRAMES | _TABLES | {_SOS}:
            return None
        parts += [b"\xff", bytes([marker]), segment]
        frames += marker in _FRAMES
        if marker == _SOS:
            scans += 1
            end = _NEXT_MARKER.search(content, place)
            if end is None:
                return None
            parts.append(content[place : end.start()])
            place = end.start()


def decode_jpeg(payload: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The pixels of a JPEG.

    Args:
        payload: as `strip_jpeg` returns it.
        shape: (C, D, H, W) of the scan; C is 1 or 3, and D 1. Of colour, C = 1 takes the luminance alone, which is the
            same as each channel where the three are equal.

    Returns:
        (H, W, C).

    Raises:
        ValueError: it is of another size.
        RuntimeError: it cannot be decoded.
    """
    import imagecodecs  # late: it is needed for kept JPEGs alone

    channels, depth, height, width = shape
    if depth != 1 or channels not in (1, 3):
        raise ValueError(f"a JPEG cannot be of shape {shape}")
    # Made before: the decoder refuses an image of another size before it takes memory for it.
    pixels = np.empty((height, width) if channels == 1 else (height, width, 3), np.uint8)
    imagecodecs.jpeg8_decode(payload, outcolorspace="GRAY" if channels == 1 else "RGB", out=pixels)
    return pixels.reshape(height, width, channels)


def keep_jpeg(path: Path, voxels: NDArray) -> KeptJpeg | None:
    """The JPEG in a file, to be stored in place of the voxels that a reader made of it.

    Args:
        path: of the file.
        voxels: (C, 1, H, W) that were read of it.

    Returns:
        None where it does not decode to exactly these voxels, as an image that EXIF turns.
    """
    if path.stat().st_size > _LARGEST or voxels.dtype != np.uint8:
        return None
    payload = strip_jpeg(path.read_bytes())
    if payload is None:
        return None
    try:
        pixels = decode_jpeg(payload, voxels.shape)
    except Exception:  # whatever is wrong, the voxels are there
        return None
    same = np.array_equal(np.moveaxis(pixels, -1, 0)[:, None], voxels)
    return KeptJpeg(payload, crc32(pixels)) if same else None


def single_channel(voxels: NDArray) -> NDArray:
    """Colour whose three channels are equal as one channel: (3, D, H, W) becomes (1, D, H, W), all else stays."""
    if voxels.shape[0] != 3 or not (np.array_equal(voxels[0], voxels[1]) and np.array_equal(voxels[0], voxels[2])):
        return voxels
    return np.ascontiguousarray(voxels[:1])
