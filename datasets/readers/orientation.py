"""EXIF's orientation of images, as PNG and TIFF carry it."""

from typing import Any

from numpy.typing import NDArray

ORIENTATION = 0x0112
# What is done with (..., H, W): transpose, then flip along H, along W.
UPRIGHT = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}


def upright_by(orientation: Any) -> tuple[int, int, int]:
    """(transpose, flip along H, flip along W), each 0 or 1; nothing for what is no orientation."""
    return UPRIGHT.get(orientation, (0, 0, 0))


def turned(pixels: NDArray, orientation: Any) -> NDArray:
    """`pixels` (..., H, W) as they are to be looked at."""
    transpose, flip_h, flip_w = upright_by(orientation)
    if transpose:
        pixels = pixels.swapaxes(-1, -2)
    return pixels[..., :: -1 if flip_h else 1, :: -1 if flip_w else 1]
