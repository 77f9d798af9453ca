"""TIFF by tifffile, compressed ones through imagecodecs."""

import logging
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffFileError

from scanfoundry.datasets.readers.geometry import turned, upright_by
from scanfoundry.datasets.readers.guard import check_expansion, check_voxels, reason_of
from scanfoundry.datasets.readers.nifti import compact
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source
from scanfoundry.datasets.readers.tiff_spacing import has_slices, spacing_of

MAX_CHANNELS = 4
_SCAN = "SCZYX"  # axes within a scan: samples, channels, slices, rows, columns
_SLIDES = ("is_svs", "is_ndpi", "is_scn", "is_bif", "is_philips", "is_qpi", "is_avs")
_JPEG = (COMPRESSION.JPEG, COMPRESSION.OJPEG)

# Of a damaged structure tifffile raises whatever it stumbles over.
_ERRORS = (
    *(TiffFileError, OSError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError, AttributeError),
    *(struct.error, zlib.error),
)
# Its messages name files and repeat headers.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_tiff(source: Source) -> Iterator[Scan]:
    """The scans of a TIFF: grey or RGB of any depth; several (part '0', '1', ...) where pages differ in size or time.

    A stack of equal pages is a volume only where the file itself says that its pages are slices (ImageJ, OME);
    otherwise nothing vouches for a third dimension, and they are frames. Spacing is OME's or ImageJ's; the resolution
    of a plain TIFF is meant for printers and not looked at. Palettes become RGB with their indices beside it, white is
    the largest number.
    """
    path = source.paths[0]
    try:
        with TiffFile(path, _multifile=False) as tiff:
            _check(tiff)
            images = [image for image in tiff.series if not image.keyframe.is_reduced]
            several = sum(len(_places(tiff, image)) for image in images) > 1
            scans = (scan for number, image in enumerate(images) for scan in _scans(tiff, image, number))
            for part, scan in enumerate(scans):
                yield replace(scan, part=str(part) if several else "")
    except _ERRORS as error:
        raise ReadError(f"not a readable TIFF: {reason_of(error, path)}") from error
    except RuntimeError as error:  # those of imagecodecs
        raise ReadError(f"damaged TIFF: {reason_of(error, path)}") from error


def _check(tiff: TiffFile) -> None:
    if any(getattr(tiff, name, False) for name in _SLIDES):
        raise ReadError("whole-slide image: a pyramid, with a photo of its label beside it; cut tiles out of it")
    if not len(tiff.pages) or tiff.pages.next_page_offset is None:
        raise ReadError("no pages")
    tiff.filehandle.seek(tiff.pages.next_page_offset)
    size = tiff.tiff.offsetsize
    if any(tiff.filehandle.read(size)) or tiff.filehandle.size < tiff.pages.next_page_offset + size:
        # tifffile leaves the pages that it cannot reach out without an error.
        raise ReadError("damaged TIFF: its list of pages leads to nowhere")


def _places(tiff: TiffFile, image: Any) -> list[tuple[int, ...]]:
    """The places along the axes other than channel, depth, height and width that are scans of their own."""
    axes = _axes(tiff, image)
    if "Z" not in axes:
        return [()]
    return list(np.ndindex(*(size for size, axis in zip(image.shape, axes, strict=True) if axis not in _SCAN)))


def _axes(tiff: TiffFile, image: Any) -> str:
    axes: str = image.axes
    if "Y" not in axes or "X" not in axes:
        raise ReadError(f"axes '{axes}' are not supported")
    stack = axes.strip("SCYX")
    return axes.replace(stack, "Z") if len(stack) == 1 and stack in "IQ" and has_slices(tiff) else axes


def _scans(tiff: TiffFile, image: Any, number: int) -> Iterator[Scan]:
    page, axes = image.keyframe, _axes(tiff, image)
    size = tiff.filehandle.size
    check_expansion(image.nbytes, size)
    if page.compression == COMPRESSION.NONE and image.nbytes > size * 8 // page.bitspersample * image.dtype.itemsize:
        raise ReadError(f"cut short: declares {image.nbytes} bytes of voxels, has {size} in all")
    if any(0 in one.databytecounts for one in image.pages if one is not None):
        raise ReadError("damaged TIFF: parts of it are missing")
    # What lies in the file as one piece is mapped: of a series in time only the volume in hand is then in memory.
    raw = image.asarray(out="memmap") if image.dataoffset is not None else image.asarray()
    rest = [axis for axis in axes if axis not in _SCAN]
    raw = raw.transpose([axes.index(axis) for axis in rest + [axis for axis in _SCAN if axis in axes]])
    channels = math.prod(size for size, axis in zip(image.shape, axes, strict=True) if axis in "SC")
    spacing = spacing_of(tiff, number)
    if upright_by(_orientation(page))[0]:
        spacing = (spacing[0], spacing[2], spacing[1])
    for place in _places(tiff, image):
        frames = bool(rest) and not place
        if frames:
            stored = np.moveaxis(raw.reshape(-1, channels, *raw.shape[-2:]), 0, 1)
        else:
            stored = raw[place].reshape(channels, -1, *raw.shape[-2:])
        voxels = turned(_colours(stored, page), _orientation(page))
        check_voxels(voxels)
        if len(voxels) > MAX_CHANNELS:
            raise ReadError(f"{len(voxels)} channels; at most {MAX_CHANNELS} are read")
        # A copy: a map would end with the file.
        own = compact(np.array(voxels, order="C", subok=False))
        lossy = page.compression in _JPEG
        indices = _indices(stored, page)
        palette = None if indices is None else (np.asarray(page.colormap).T >> 8).astype(np.uint8)
        yield Scan(own, spacing, frames=frames, indices=indices, palette=palette, lossy=lossy)


def _colours(voxels: NDArray, page: Any) -> NDArray:
    """Grey or RGB (C, D, H, W) of the page's samples; refused: other colours, and transparency that shows."""
    kind = page.photometric
    if kind == PHOTOMETRIC.PALETTE and len(voxels) == 1:
        return (np.asarray(page.colormap)[:, voxels[0]] >> 8).astype(np.uint8)
    if kind not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB) and not (
        kind == PHOTOMETRIC.YCBCR and page.compression in _JPEG
    ):
        raise ReadError(f"colour space {getattr(kind, 'name', kind)} is not supported; convert it to grey or RGB")
    if page.extrasamples and len(voxels) == page.samplesperpixel and len(voxels) in (2, 4):
        opaque = np.iinfo(voxels.dtype).max if voxels.dtype.kind in "iu" else 1
        if (voxels[-1] != opaque).any():
            raise ReadError("has transparent pixels; flatten it first")
        voxels = voxels[:-1]
    if kind == PHOTOMETRIC.MINISWHITE:
        if voxels.dtype.kind == "b":
            return ~voxels
        if voxels.dtype.kind != "u":
            raise ReadError(f"white is zero in voxels of type {voxels.dtype}; store them the other way round")
        return voxels.dtype.type(2**page.bitspersample - 1) - voxels
    return voxels


def _orientation(page: Any) -> Any:
    return page.tags.valueof("Orientation", 1)


def _indices(stored: NDArray, page: Any) -> NDArray | None:
    """(D, H, W) of a palette, whose one channel `stored` is; None of other pages."""
    if page.photometric != PHOTOMETRIC.PALETTE or len(stored) != 1:
        return None
    return compact(np.array(turned(stored, _orientation(page))[0], order="C", subok=False))
