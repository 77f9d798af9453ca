"""litdata: `optimize` into its chunks, `StreamingDataset` and `StreamingDataLoader` to read them.

Variants: `tensor`, whole volumes uncompressed, as its documentation stores tensors. For a local folder litdata maps
chunks into memory, so the crop is copied out of the mapping and the rest of the volume is never touched: its best
case, at the price of the whole uncompressed size on disk. `zstd`, the compression that it offers, per sample. `b2nd`,
a volume as the bytes of a blosc2 frame (lz4hc), of which the crop alone is decoded.
Chosen in its favour: no shuffling; each volume `REPEAT` times in the data set, because starting an epoch costs it
some milliseconds, and six volumes are a short one; chunks of 1 GB at most, so that few have to be opened.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import blosc2
import litdata
import numpy as np
import torch
from peers.blosc2_peer import compress
from peers.common import Request, collate, load, loader_options, random_generator, visit

VARIANTS = ("tensor", "zstd", "b2nd")
REPEAT = 8


@lru_cache(maxsize=1)
def sample(path: Path, variant: str) -> torch.Tensor | bytes:
    """What is stored of a scan."""
    voxels = load(path)
    return compress(voxels, "lz4hc").to_cframe() if variant == "b2nd" else torch.from_numpy(voxels.copy())


def prepare(scans: list[Path], out: Path, variant: str) -> None:
    """Chunks in `out`."""
    options = {"compression": "zstd", "compression_level": "sample"} if variant == "zstd" else {}
    repeat = REPEAT if len(scans) < 100 else 1
    litdata.optimize(
        partial(sample, variant=variant),
        [path for path in scans for _ in range(repeat)],
        str(out),
        chunk_bytes="1GB",
        num_workers=2,
        verbose=False,
        **options,
    )


class Visits(litdata.StreamingDataset):
    """Crops of each scan in turn."""

    def __init__(self, request: Request, variant: str) -> None:
        super().__init__(str(request.data), shuffle=False)
        self._request, self._variant = request, variant
        self._rng: np.random.Generator | None = None

    def __getitem__(self, index: Any) -> list[torch.Tensor]:
        if self._rng is None:
            self._rng = random_generator()
        scan = super().__getitem__(index)
        if self._variant == "b2nd":
            scan = blosc2.ndarray_from_cframe(scan)
        return visit(scan, self._request, self._rng)


def batches(request: Request, variant: str) -> Iterator[torch.Tensor]:
    """Endless batches."""
    loader = litdata.StreamingDataLoader(
        Visits(request, variant), batch_size=request.visits, collate_fn=collate, **loader_options(request)
    )
    while True:
        yield from loader
