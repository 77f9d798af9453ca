"""mosaicml-streaming: MDS shards read by its `StreamingDataset` under a DataLoader.

Variants: `ndarray`, its encoding for arrays, uncompressed; `zstd`, the same in shards compressed as its documentation
recommends (it decompresses a shard to disk when it first meets it, so that later epochs read what `ndarray` does);
`b2nd`, a volume as the bytes of a blosc2 frame (lz4hc), of which the crop alone is decoded.
Chosen in its favour: an epoch of a hundred thousand visits (`epoch_size`), because starting one costs it a second
and six volumes are a short one; no shuffling; local shards, no download; one shard per 256 MB.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from peers.blosc2_peer import compress
from peers.common import Request, collate, load, loader_options, random_generator, visit
from torch.utils.data import DataLoader

# streaming imports torchvision, which the project mends beside a CPU-only torch in one module
_SPEC = importlib.util.spec_from_file_location(
    "torchvision_cpu", Path(__file__).resolve().parents[2] / "backbones" / "torchvision_cpu.py"
)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
_MODULE.ensure_torchvision()
import streaming  # noqa: E402

VARIANTS = ("ndarray", "zstd", "b2nd")
EPOCH = 100_000
LIMIT = 2**28


def prepare(scans: list[Path], out: Path, variant: str) -> None:
    """Shards in `out`."""
    encoding = "bytes" if variant == "b2nd" else f"ndarray:{load(scans[0]).dtype.name}"
    compression = "zstd:3" if variant == "zstd" else None
    with streaming.MDSWriter(
        out=str(out), columns={"scan": encoding}, compression=compression, size_limit=LIMIT
    ) as writer:
        for path in scans:
            voxels = load(path)
            writer.write({"scan": compress(voxels, "lz4hc").to_cframe() if variant == "b2nd" else voxels})


class Visits(streaming.StreamingDataset):
    """Crops of one scan after another."""

    def __init__(self, request: Request, variant: str) -> None:
        super().__init__(local=str(request.data), shuffle=False, batch_size=request.visits, epoch_size=EPOCH)
        self._request, self._variant = request, variant
        self._rng: np.random.Generator | None = None

    def __getitem__(self, index: Any) -> list[torch.Tensor]:
        if self._rng is None:
            self._rng = random_generator()
        scan = super().__getitem__(index)["scan"]
        if self._variant == "b2nd":
            scan = blosc2.ndarray_from_cframe(scan)
        return visit(scan, self._request, self._rng)


def batches(request: Request, variant: str) -> Iterator[torch.Tensor]:
    """Endless batches."""
    loader = DataLoader(
        Visits(request, variant), batch_size=request.visits, collate_fn=collate, **loader_options(request)
    )
    while True:
        yield from loader
