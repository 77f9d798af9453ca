"""JPEG lossless and 12-bit JPEG for pydicom, by the GDCM inside SimpleITK.

pydicom's own way is pylibjpeg-libjpeg, whose licence is the GPL; SimpleITK (Apache) reads the other formats anyway.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import (
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)
from pydicom.pixels.decoders.base import DecodeRunner

from scanfoundry.datasets.readers.scratch import scratch_folder

# pydicom asks a plugin's module for these two.
DECODER_DEPENDENCIES = dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), ("SimpleITK",))
_LABEL = "scanfoundry-itk"


def is_available(syntax: str) -> bool:
    """Whether this module decodes the transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def register() -> None:
    """Make pydicom use `_decode_frame`; a second call changes nothing."""
    for decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
        if _LABEL not in decoder.available_plugins:
            decoder.add_plugin(_LABEL, (__name__, "_decode_frame"))


def _decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame's bytes, decoded: pixel by pixel, samples interleaved. Called by pydicom."""
    import SimpleITK

    with _file_of(_as_file(source, runner)) as path:
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(path)
        with suppress_stderr():
            pixels = SimpleITK.GetArrayFromImage(reader.Execute())
    kind = np.dtype(f"<{'i' if runner.pixel_representation else 'u'}{runner.bits_allocated // 8}")
    runner.set_option("planar_configuration", 0)
    return pixels.astype(kind).tobytes()


@contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """The name of a file of this content: one without a place on any disk, so that no kill leaves it behind."""
    if not hasattr(os, "memfd_create"):  # macOS
        with scratch_folder() as folder:
            (folder / "frame.dcm").write_bytes(content)
            yield str(folder / "frame.dcm")
        return
    with open(os.memfd_create("scanfoundry-frame"), "wb") as stream:
        stream.write(content)
        stream.flush()
        yield f"/proc/self/fd/{stream.fileno()}"


def _as_file(source: bytes, runner: DecodeRunner) -> bytes:
    """A DICOM file of this frame and nothing else, element by element; colours are left to pydicom."""
    colour = runner.samples_per_pixel == 3
    meta = [
        (0x0002, 0x0002, b"UI", uid.SecondaryCaptureImageStorage.encode()),
        (0x0002, 0x0003, b"UI", b"1.2.3"),
        (0x0002, 0x0010, b"UI", runner.transfer_syntax.encode()),
    ]
    numbers = [(0x0002, runner.samples_per_pixel), (0x0006, 0 if colour else None), (0x0010, runner.rows)]
    numbers += [(0x0011, runner.columns), (0x0100, runner.bits_allocated), (0x0101, runner.bits_stored)]
    numbers += [(0x0102, runner.bits_stored - 1), (0x0103, runner.pixel_representation)]
    image = [(0x0028, tag, b"US", struct.pack("<H", value)) for tag, value in numbers if value is not None]
    image.append((0x0028, 0x0004, b"CS", b"RGB" if colour else b"MONOCHROME2"))
    sop = [(0x0008, 0x0016, b"UI", uid.SecondaryCaptureImageStorage.encode()), (0x0008, 0x0018, b"UI", b"1.2.3")]
    head = b"".join(_element(*each) for each in meta)
    length = _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(head)))
    body = b"".join(_element(*each) for each in sop + sorted(image))
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + encapsulate([source])
    return bytes(128) + b"DICM" + length + head + body + pixels + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    padding = b"" if len(value) % 2 == 0 else b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", group, element, vr, len(value) + len(padding)) + value + padding


@contextmanager
def suppress_stderr() -> Iterator[None]:
    """GDCM tries 8, 12 and 16 bits in turn, and libjpeg complains on the error stream of each that does not fit."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
