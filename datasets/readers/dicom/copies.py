"""Of several files of one instance: the one to read."""

import filecmp
from collections.abc import Sequence

from scanforge.datasets.readers.dicom.decode import frames_of
from scanforge.datasets.readers.dicom.headers import Survey
from scanforge.datasets.readers.dicom.pixels import why_incomplete
from scanforge.datasets.readers.dicom.quiet import quiet

_TAIL = 512  # bytes: a file that was never filled to its end is left as zeros


def soundest(copies: Sequence[Survey]) -> Survey:
    """The first of the `copies` that is whole and can be decoded, or else the first.

    Nothing is decoded where all copies are alike. Uncompressed ones cannot fail to be decoded, but a transfer that was
    broken off may have left zeros where another copy has pixels.
    """
    whole = [file for file in copies if not why_incomplete(file)] or list(copies)
    if all(filecmp.cmp(whole[0].path, other.path, shallow=False) for other in whole[1:]):
        return whole[0]
    decoded = [file for file in whole if _can_be_decoded(file)] or whole
    filled = [file for file in decoded if not _ends_in_zeros(file)] or decoded
    return filled[0]


def _can_be_decoded(file: Survey) -> bool:
    if file.pixel_length >= 0:
        return True
    try:
        with quiet():
            return sum(1 for _ in frames_of(file)) == file.frames
    except Exception:  # decoders raise whatever the damage makes them
        return False


def _ends_in_zeros(file: Survey) -> bool:
    """Whether the pixels end in a block of zeros, and the file with them."""
    if file.pixel_length < _TAIL:
        return False
    with file.path.open("rb") as opened:
        opened.seek(-_TAIL, 2)
        return not any(opened.read(_TAIL))
