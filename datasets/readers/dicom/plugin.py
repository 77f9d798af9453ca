"""JPEG lossless and 12-bit JPEG for pydicom, by the GDCM inside SimpleITK.

pydicom's own way is pylibjpeg-libjpeg, whose licence is the GPL; SimpleITK (Apache) reads the other formats anyway.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import (
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)
from pydicom.pixels.decoders.base import DecodeRunner

from scanforge.datasets.readers.scratch import scratch_folder

# pydicom asks a plugin's module for these two.
DECODER_DEPENDENCIES = dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), ("SimpleITK",))
_LABEL = "scanforge-itk"


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
        with _silent():
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
    with open(os.memfd_create("scanforge-frame"), "wb") as stream:
        stream.write(content)
        stream.flush()
        yield f"/proc/self/fd/{stream.fileno()}"


def _as_file(source: bytes, runner: DecodeRunner) -> bytes:
    """A DICOM file of this frame and nothing else; colours are left to pydicom."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = runner.transfer_syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = uid.UID("1.2.3")
    file.Rows, file.Columns = runner.rows, runner.columns
    file.SamplesPerPixel = runner.samples_per_pixel
    file.PhotometricInterpretation = "RGB" if runner.samples_per_pixel == 3 else "MONOCHROME2"
    if runner.samples_per_pixel == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated, file.BitsStored = runner.bits_allocated, runner.bits_stored
    file.HighBit = runner.bits_stored - 1
    file.PixelRepresentation = runner.pixel_representation
    file.PixelData = encapsulate([source])
    file["PixelData"].VR = "OB"
    written = BytesIO()
    file.save_as(written, enforce_file_format=True)
    return written.getvalue()


@contextmanager
def _silent() -> Iterator[None]:
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
