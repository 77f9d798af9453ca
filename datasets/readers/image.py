"""PNG, JPEG, BMP and GIF by pillow; PNG of 16 bits and several channels, which pillow cuts to 8, by imagecodecs."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from scanfoundry.datasets.readers.geometry import ORIENTATION, turned
from scanfoundry.datasets.readers.guard import reason_of
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

_LOSSY = ("JPEG", "MPO")
_SEVERAL = b"\x02\x04\x06"  # colour types of PNG's header that have several channels: RGB, grey with alpha, RGBA
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class _Pixels(NamedTuple):
    """values: (H, W) or (H, W, C). indices: (H, W), of a palette (N, 3)."""

    values: NDArray
    indices: NDArray[np.uint8] | None = None
    palette: NDArray[np.uint8] | None = None


def read_image(source: Source) -> Iterator[Scan]:
    """The one image in a file (.png, .jpg, .jpeg, .bmp, .gif): (1 or 3, 1, H, W), uint8 or uint16, upright by EXIF.

    1-bit images become 0 and 1, palettes RGB with their indices beside it.

    Raises:
        ReadError: the file is an animation, is transparent, is CMYK, or is damaged.
    """
    yield _read(source.paths[0], False)


def read_mask(source: Source) -> Iterator[Scan]:
    """The one mask in an image file: for a palette the indices alone, (1, 1, H, W), whatever colours show them."""
    yield _read(source.paths[0], True)


def _read(path: Path, mask: bool) -> Scan:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise ReadError("animation of several frames")
                lossy = image.format in _LOSSY
                found = _deep(path, image) if _is_deep(path) else _pixels(ImageOps.exif_transpose(image), mask)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ReadError(f"more than {Image.MAX_IMAGE_PIXELS} pixels: refused as a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise ReadError("not an image that pillow can read") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ReadError(f"damaged image: {reason_of(error, path)}") from error
    # (H, W) or (H, W, C) -> (C, 1, H, W)
    channels = found.values[None] if found.values.ndim == 2 else np.moveaxis(found.values, -1, 0)
    indices = None if found.indices is None else found.indices[None]
    voxels = np.ascontiguousarray(channels[:, None])
    return Scan(voxels, (1.0, 1.0, 1.0), indices=indices, palette=found.palette, lossy=lossy)


def _is_deep(path: Path) -> bool:
    """Whether it is a PNG of 16 bits in several channels, by its header: bit depth and colour type of IHDR."""
    with path.open("rb") as stream:
        header = stream.read(26)
    return len(header) == 26 and header.startswith(_SIGNATURE) and header[24] == 16 and header[25] in _SEVERAL


def _deep(path: Path, image: Image.Image) -> _Pixels:
    """The pixels of the file that pillow has opened as `image`, which knows the orientation and a clear colour."""
    import imagecodecs

    orientation = image.getexif().get(ORIENTATION, 1)  # decodes it, and so tells damage that imagecodecs passes over
    try:
        pixels = imagecodecs.png_decode(path.read_bytes())
    except RuntimeError as error:
        raise ReadError(f"damaged image: {reason_of(error, path)}") from error
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and pixels.ndim == 3 and (pixels[..., :3] == np.array(clear)).all(-1).any():
        raise ReadError("has transparent pixels; flatten it first")
    if pixels.shape[-1] in (2, 4):
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise ReadError("has transparent pixels; flatten it first")
        pixels = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3]
    upright = turned(np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels, orientation)
    return _Pixels(np.moveaxis(upright, 0, -1) if pixels.ndim == 3 else upright)


def _pixels(image: Image.Image, mask: bool) -> _Pixels:
    indices = palette = None
    if image.mode == "P":
        indices, palette = np.array(image), np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        if mask:
            return _Pixels(indices, indices, palette)
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode in ("LA", "RGBA"):
        pixels = np.asarray(image)
        if (pixels[..., -1] != 255).any():
            raise ReadError("has transparent pixels; flatten it first")
        return _Pixels(pixels[..., 0] if image.mode == "LA" else pixels[..., :3], indices, palette)
    if image.mode == "1":
        return _Pixels(np.asarray(image).astype(np.uint8))
    if image.mode in ("L", "RGB"):
        return _Pixels(np.asarray(image), indices, palette)
    if image.mode.startswith("I"):  # 16-bit grey; pillow widens some of them to 32 bits
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ReadError("32-bit pixels are not supported")
        if isinstance(clear := image.info.get("transparency"), int) and (pixels == clear).any():
            raise ReadError("has transparent pixels; flatten it first")
        return _Pixels(pixels.astype(np.uint16))
    raise ReadError(f"colour mode {image.mode} is not supported; convert it to grey or RGB")
