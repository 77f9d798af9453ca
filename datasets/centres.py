"""Where a crop lies in its scan: its centre as shares of the scan's extent, along the same axes for all scans."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D

NOWHERE = float("nan")
# Standard orientation is 'SAR', as `Scan` writes it: D grows from feet to head, H from back to front, W to the right.
_AXES = (("S", "I"), ("A", "P"), ("R", "L"))


class Centres(NamedTuple):
    """The centres of B crops. They stay on the host, since few objectives read them.

    Attributes:
        shares: (B, 3) float32, along D, H, W of the scan in standard orientation, each between 0 and 1, before flips
            and augmentation. NaN along an axis that tells no places apart: the crop holds all of it, or it counts
            frames of a video.
        oriented: (B,) bool, whether the scan's orientation is known; else its axes are taken as they are stored.
    """

    shares: NDArray[np.float32]
    oriented: NDArray[np.bool_]

    @classmethod
    def unknown(cls, count: int) -> "Centres":
        """Of crops that nothing is known of yet."""
        return cls(np.full((count, 3), NOWHERE, np.float32), np.zeros(count, np.bool_))

    def rows(self, rows: slice) -> "Centres":
        """Those of some of the crops."""
        return Centres(self.shares[rows], self.oriented[rows])

    def put(self, row: int, start: Size3D, crop: Size3D, scan: Size3D, orientation: str, frames: bool) -> None:
        """Write down one crop.

        Args:
            row: its number in the batch.
            start: its first voxel (D, H, W).
            crop: its shape (D, H, W).
            scan: shape (D, H, W) of the scan.
            orientation: of the scan, as in `Scan`; '' where it is unknown.
            frames: whether D counts frames, which are images without an orientation.
        """
        stored = [
            NOWHERE if size >= length else (begin + size / 2) / length
            for begin, size, length in zip(start, crop, scan, strict=True)
        ]
        if frames:
            stored[0] = NOWHERE
        self.oriented[row] = known = bool(orientation) and not frames
        self.shares[row] = _turned(stored, orientation) if known else stored


def _turned(stored: list[float], orientation: str) -> list[float]:
    """Shares along the stored axes, brought to standard orientation."""
    turned = [NOWHERE] * 3
    for share, letter in zip(stored, orientation, strict=True):
        axis = next(number for number, letters in enumerate(_AXES) if letter in letters)
        turned[axis] = share if letter == _AXES[axis][0] else 1 - share
    return turned
