"""Batches to augment."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage

from scanfoundry.datasets.batch import Batch

MakeBatch = Callable[..., Batch]


def _make_batch(
    modalities: Sequence[str] = ("mr",),
    shape: tuple[int, int, int] = (12, 14, 16),
    channels: int = 1,
    padding: int = 0,
    first_seed: int = 0,
) -> Batch:
    """Smooth scans in the range of their modality, with `padding` voxels on each side that are not valid."""
    voxels, valid = [], []
    for number, modality in enumerate(modalities):
        rng = np.random.default_rng(1000 + first_seed + number)
        scan = ndimage.gaussian_filter(rng.normal(size=(channels, *shape)), (0, 1, 1, 1))
        scan = np.clip(scan / max(scan.std(), 1e-3), -2, 2)
        if modality == "ct":
            scan = np.clip(scan, -1, 1)
        inside = np.zeros((1, *shape), bool)
        inside[(slice(None), *(slice(padding, n - padding) if n > 1 else slice(None) for n in shape))] = True
        scan[:, ~inside[0]] = -1 if modality == "ct" else -2
        voxels.append(scan)
        valid.append(inside)
    count = len(modalities)
    return Batch(
        voxels=torch.from_numpy(np.stack(voxels).astype(np.float32)),
        valid=torch.from_numpy(np.stack(valid)),
        seeds=torch.arange(first_seed, first_seed + count) * 1_000_003 + 2**61,
        keys=[f"scan{number}" for number in range(count)],
        modalities=list(modalities),
        sources=["s"] * count,
        step=7,
    )


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    return _make_batch
