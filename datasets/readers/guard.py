"""What every reader refuses (voxels that are no numbers, decompression bombs), and error texts without paths."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.scan import ReadError

MAX_BYTES = 16 * 2**30  # one scan in memory
# Deflate reaches 1032; label maps and shape masks 230; what is denser and large holds next to nothing.
MAX_RATIO = 500
RATIO_FROM_BYTES = 2**30

_POINTER = re.compile(r"\w+\((0x)?[0-9a-fA-F]{6,}\):\s*")


def check_voxels(array: NDArray) -> None:
    """Check that an array holds voxels.

    Raises:
        ReadError: it is empty, holds no real numbers, or holds NaN or infinity.
    """
    if array.dtype.kind not in "iufb":
        raise ReadError(f"voxels of type {array.dtype} are not supported")
    if array.size == 0:
        raise ReadError(f"empty: shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ReadError("holds NaN or infinite voxels")


def check_expansion(declared: int, stored: int) -> None:
    """Check that voxels fit into memory and come from a plausible number of bytes.

    Args:
        declared: bytes of the voxels.
        stored: bytes in the file that they come from.

    Raises:
        ReadError: the voxels are too many, as such or for the bytes in the file.
    """
    if declared > MAX_BYTES:
        raise ReadError(f"declares {declared / 2**30:.1f} GiB of voxels; at most {MAX_BYTES / 2**30:.0f} are read")
    check_ratio(declared, stored)


def check_ratio(declared: int, stored: int) -> None:
    """Check data that is never in memory as a whole.

    Raises:
        ReadError: `stored` bytes expand to more `declared` ones than those of an image do.
    """
    if declared > RATIO_FROM_BYTES and declared > MAX_RATIO * max(1, stored):
        raise ReadError(f"{stored} bytes declare {declared}: refused as a decompression bomb")


def reason_of(error: BaseException, path: Path) -> str:
    """The text of an error in one line, without the path and without addresses in memory."""
    text = str(error).split("ITK ERROR:")[-1].replace(str(path), "file").replace(path.name, "file")
    return " ".join(_POINTER.sub("", text).split())[:300] or type(error).__name__
