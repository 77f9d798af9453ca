"""Of several files of one instance: those to read. They are copies of one picture, or an anonymiser shared a UID."""

import filecmp
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.decode import frames_of
from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.pixels import why_incomplete
from scanfoundry.datasets.readers.dicom.suppress_warnings import quiet

_TAIL = 512  # bytes: a file that was never filled to its end is left as zeros
_ALIKE = 0.99  # correlation of a picture with what lossy compression leaves of it


def read_for(copies: Sequence[Survey]) -> list[Survey]:
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


def _pictures(copies: Sequence[Survey], whole: Sequence[Survey]) -> list[Survey]:
    """A file for each different picture; those that are damaged are left out for the first sound one."""
    found: list[tuple[Survey, NDArray]] = []
    instead: dict[int, Survey] = {}
    for file in sorted(whole, key=lambda file: file.lossy):
        pixels = _pixels(file)
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


def _are_one(pixels: NDArray, others: NDArray, file: Survey, kept: Survey) -> bool:
    if pixels.shape != others.shape or _scale(file) != _scale(kept):
        return False
    if np.array_equal(pixels, others):
        return True
    varied = file.lossy and pixels.std() > 0 and others.std() > 0
    return bool(varied and np.corrcoef(pixels.ravel(), others.ravel())[0, 1] > _ALIKE)


def _scale(file: Survey) -> tuple[float, float]:
    return 1.0 if file.slope is None else file.slope, file.intercept or 0.0


def _is_damaged(pixels: NDArray, others: NDArray) -> bool:
    """Whether `pixels` are the `others` but for places that were never filled, and are zeros."""
    return pixels.shape == others.shape and not pixels[pixels != others].any() and not np.array_equal(pixels, others)


def _pixels(file: Survey) -> NDArray | None:
    """The only frame (H, W); None where there is not one that can be decoded."""
    try:
        with quiet():
            (pixels,) = frames_of(file)
            return pixels
    except Exception:  # decoders raise whatever the damage makes them
        return None


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
