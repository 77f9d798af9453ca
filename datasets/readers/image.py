"""PNG and JPEG by pillow."""

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from scanforge.datasets.readers.guard import reason_of
from scanforge.datasets.readers.scan import ReadError, Scan, Source


def read_image(source: Source) -> Iterator[Scan]:
    """The one image in a file (.png, .jpg, .jpeg): (1 or 3, 1, H, W), uint8 or uint16, upright by EXIF.

    1-bit images become 0 and 1, palettes RGB; ReadError for animations, real transparency, CMYK and damaged files.
    """
    path = source.paths[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise ReadError("animation of several frames")
                pixels = _pixels(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ReadError(f"more than {Image.MAX_IMAGE_PIXELS} pixels: refused as a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise ReadError("not an image that pillow can read") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ReadError(f"damaged image: {reason_of(error, path)}") from error
    # (H, W) or (H, W, C) -> (C, 1, H, W)
    channels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    yield Scan(np.ascontiguousarray(channels[:, None]), (1.0, 1.0, 1.0))


def _pixels(image: Image.Image) -> NDArray:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode in ("LA", "RGBA"):
        pixels = np.asarray(image)
        if (pixels[..., -1] != 255).any():
            raise ReadError("has transparent pixels; flatten it first")
        return pixels[..., 0] if image.mode == "LA" else pixels[..., :3]
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode.startswith("I"):  # 16-bit grey; pillow widens some of them to 32 bits
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ReadError("32-bit pixels are not supported")
        return pixels.astype(np.uint16)
    raise ReadError(f"colour mode {image.mode} is not supported; convert it to grey or RGB")
