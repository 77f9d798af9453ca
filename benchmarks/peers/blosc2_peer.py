"""The ordinary DataLoader over individual blosc2 files, each crop a partial read of a memory-mapped .b2nd.

Chosen in its favour: frames stay open in each worker (opening one costs more than a small crop); one blosc2 thread
per worker, since workers fill the cores; blocks of 16 x 32 x 32 and chunks of 64^3, the sizes that data_format.md
found best; lz4hc level 9 and zstd level 5, both with shuffle.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from peers.common import Request, endless_map, load, random_generator, visit
from torch.utils.data import Dataset

VARIANTS = ("lz4hc", "zstd")
CODECS = {"lz4hc": (blosc2.Codec.LZ4HC, 9), "zstd": (blosc2.Codec.ZSTD, 5)}


def compress(voxels: np.ndarray, variant: str, path: Path | None = None) -> blosc2.NDArray:
    """A contiguous frame, in memory or at `path`."""
    codec, level = CODECS[variant]
    flat = voxels.shape[0] == 1
    chunks = [min(a, b) for a, b in zip((1, 512, 512) if flat else (64, 64, 64), voxels.shape, strict=True)]
    blocks = [min(a, b) for a, b in zip((1, 128, 128) if flat else (16, 32, 32), chunks, strict=True)]
    options = {"codec": codec, "clevel": level, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    where: dict[str, Any] = {} if path is None else {"urlpath": str(path), "contiguous": True, "mode": "w"}
    return blosc2.asarray(voxels, chunks=chunks, blocks=blocks, cparams=options, **where)


def prepare(scans: list[Path], out: Path, variant: str) -> None:
    """One .b2nd per scan."""
    for number, path in enumerate(scans):
        compress(load(path), variant, out / f"{number:05d}.b2nd")


class Visits(Dataset):
    """Crops of one scan by its number."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._paths = sorted(request.data.glob("*.b2nd"))
        self._open: dict[int, blosc2.NDArray] = {}
        self._rng: np.random.Generator | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> list[torch.Tensor]:
        if self._rng is None:
            self._rng = random_generator()
        if number not in self._open:
            self._open[number] = blosc2.open(str(self._paths[number]), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        return visit(self._open[number], self._request, self._rng)


def batches(request: Request, variant: str) -> Iterator[torch.Tensor]:
    """Endless batches."""
    return endless_map(Visits(request), request)
