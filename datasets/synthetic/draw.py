"""From a seed to a scan."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.crop import mix
from scanfoundry.datasets.synthetic.appearance import appearance
from scanfoundry.datasets.synthetic.config import SyntheticConfig
from scanfoundry.datasets.synthetic.shapes import draw_labels


@dataclass(frozen=True)
class SyntheticScan:
    """A label map and what it looks like.

    Attributes:
        labels: (D, H, W) uint8, 0 for the background.
        appearances: (D, H, W) int16 each; a voxel shows the same place in all of them.
    """

    labels: NDArray[np.uint8]
    appearances: list[NDArray[np.int16]]


def draw_scan(seed: int, shape: Size3D, config: SyntheticConfig, appearances: int = 2) -> SyntheticScan:
    """The scan that a seed stands for.

    Args:
        seed: 64 bits. How many appearances are drawn does not change any of them.
        shape: (D, H, W); of an image D is 1.
        config: ranges.
        appearances: how many.
    """
    labels = draw_labels(_generator(seed, 0), shape, config)
    drawn = [appearance(_generator(seed, 1 + number), labels, config) for number in range(appearances)]
    return SyntheticScan(labels, drawn)


def _generator(seed: int, part: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=mix(seed, part)))
