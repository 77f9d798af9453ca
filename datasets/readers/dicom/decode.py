"""Frames out of a file by pydicom, one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray
from pydicom.pixels import iter_pixels

from scanfoundry.datasets.readers.dicom.codestream import check_frame_sizes
from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.plugin import register, silent
from scanfoundry.datasets.readers.scan import ReadError


def frames_of(file: Survey) -> Iterator[NDArray]:
    """Frames (H, W) or (H, W, 3) as stored, YBR turned into RGB. Raises whatever damage makes a decoder raise.

    FrameTooLargeError before any decoder sees a frame that is far larger than its header declares.
    """
    check_frame_sizes(file)
    register()
    frames = _decoded(file)
    while True:
        with without_panic(file.syntax == pydicom.uid.RLELossless):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


@contextmanager
def without_panic(is_rle: bool = True) -> Iterator[None]:
    """The RLE decoder is written in Rust: a frame that it does not expect ends in what is no Exception, and is told."""
    try:
        with silent() if is_rle else nullcontext():
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ReadError("compressed pixels cannot be decoded") from None


def _decoded(file: Survey) -> Iterator[NDArray]:
    known = file.syntax in pydicom.uid.AllTransferSyntaxes and not file.loose_pixels
    if known and file.syntax != pydicom.uid.DeflatedExplicitVRLittleEndian:
        yield from iter_pixels(file.path)
    else:
        yield from iter_pixels(whole_dataset(file.path))


def whole_dataset(path: Path) -> Any:
    """The parsed file with pixels; without a known syntax it is the plain one that pydicom has parsed it in."""
    dataset = pydicom.dcmread(path, force=True)
    if dataset.file_meta.get("TransferSyntaxUID", "") not in pydicom.uid.AllTransferSyntaxes:
        implicit, little = dataset.original_encoding
        plain = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if little else pydicom.uid.ExplicitVRBigEndian
    return dataset
