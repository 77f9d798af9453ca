"""What runs read, made here: shards of synthetic scans by the product's own writer, labelled volumes, a teacher."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from synthetic_shards import write

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import INFO, save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig

VOLUME, IMAGE = (160, 192, 192), (1, 256, 256)
SMALL_VOLUME, SMALL_IMAGE = (20, 24, 24), (1, 40, 40)
LEVELS = 1000  # grey values of a scan


def volumes(work: Path, small: bool) -> Path:
    """Eight shards of two volumes; made once."""
    return _shards(work / "volumes", 8, 2, SMALL_VOLUME if small else VOLUME)


def images(work: Path, small: bool) -> Path:
    """Four shards of 256 images (small: of 4); made once."""
    return _shards(work / "images", 4, 4 if small else 256, SMALL_IMAGE if small else IMAGE)


def _shards(folder: Path, shards: int, scans: int, shape: tuple[int, int, int]) -> Path:
    rng = np.random.default_rng(0)
    return write(folder, ([scan(rng, shape) for _ in range(scans)] for _ in range(shards)), "zstd")


def scan(rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """A scan (1, D, H, W) int16 of blocks of grey values with some noise: about half of it is lost to compression."""
    coarse = rng.integers(0, LEVELS, [-(-length // 8) for length in shape]).astype(np.int16)
    for axis in range(3):
        coarse = coarse.repeat(8, axis)
    depth, height, width = shape
    noise = rng.integers(0, 64, shape, np.int16)
    return (coarse[:depth, :height, :width] + noise)[None]


def teacher(work: Path) -> Path:
    """A released STU-Net-S with random weights; made once."""
    folder = work / "teacher"
    if not (folder / INFO).exists():
        torch.manual_seed(0)
        encoder = build(STUNetConfig(size="S", strides=((2, 2, 2),) * 3 + ((1, 1, 1),) * 2))
        save_release(folder, {"encoder": encoder.state_dict()}, ReleaseInfo(backbone=encoder.config), [])
    return folder
