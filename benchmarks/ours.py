"""scanfoundry's loader as a contender: `python ours.py serve VARIANT SHARDS --crop D H W --per-visit N ...`.

`both`: partial reads straight into the ring, as it is used. For the ablation: `partial`, partial reads handed over by
torch's DataLoader; `ring`, whole scans decoded by the ring's workers, crops copied out of them.
`float`: `both`, and the batch cast and normalised to float32 by the consumer.
"""

import argparse
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers.common import Request, endless_map, random_generator, tensor, window
from peers.protocol import BatchRounds, serve
from torch.utils.data import Dataset

from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, SourceConfig
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.datasets.workers import worker, worker_pool

VARIANTS = ("both", "partial", "ring", "float")


def whole_worker(connection: Connection) -> Any:
    """As `worker.worker`, its reader decoding the whole scan at its first crop."""
    worker.ShardReader = WholeReader  # type: ignore[misc]
    return worker.worker(connection)


class WholeReader(ShardReader):
    """Keeps the scan that it decoded last: the crops of one visit share it."""

    _last: tuple[int, NDArray] | None = None

    def read_into(self, number: int, region: tuple[slice, slice, slice], out: NDArray) -> None:
        """A crop out of the whole scan."""
        if self._last is None or self._last[0] != number:
            self._last = (number, self.read(number))
        np.copyto(out, self._last[1][(slice(None), *region)])


class Partial(Dataset):
    """Crops of one scan by its number, read out of the shards."""

    def __init__(self, request: Request) -> None:
        data = DataSet(request.data)
        self._request, self._readers = request, [ShardReader(data.folder, shard) for shard in data.manifest.shards]
        self._where = [(reader, number) for reader in self._readers for number in range(len(reader.entries))]
        self._rng: np.random.Generator | None = None

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, number: int) -> list[torch.Tensor]:
        if self._rng is None:
            self._rng = random_generator()
        reader, sample = self._where[number]
        shape, crop = reader.entries[sample].shape[1:], self._request.crop
        crops = []
        for _ in range(self._request.per_visit):
            out = np.empty((1, *crop), reader.entries[sample].dtype)
            reader.read_into(sample, window(shape, crop, self._rng), out)
            crops.append(tensor(out[0]))
        return crops


def batches(request: Request, variant: str) -> Iterator[torch.Tensor]:
    """Endless batches (B, 1, D, H, W)."""
    if variant == "partial":
        return endless_map(Partial(request), request)
    if variant == "ring":
        worker_pool._FACTORY = "ours:whole_worker"
    flat = request.crop[0] == 1
    sizes = {"crop_2d": request.crop[1:], "batch_2d": request.batch} if flat else {}
    config = DataConfig(
        sources=[SourceConfig(name="scans", path=request.data)],
        **(sizes or {"crop_3d": request.crop, "batch_3d": request.batch}),
        crops_per_visit=request.per_visit,
        workers=request.workers,
        ring=max(2, request.ahead),
    )
    loader = CropLoader(config, seed=0)
    deliver: Callable[[], torch.Tensor] = (
        (lambda: next(loader).voxels) if variant == "float" else (lambda: loader.crops().voxels)
    )
    return iter(deliver, None)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("serve",))
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crop", type=int, nargs=3)
    for option, default in (("per-visit", 4), ("workers", 2), ("batch", 8), ("prefetch", 2)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    request = Request(given.folder, tuple(given.crop), given.per_visit, given.workers, given.batch, given.prefetch)

    def build() -> BatchRounds:
        stream = batches(request, given.variant)
        next(stream)
        return BatchRounds(stream, request.batch, request.ahead + 1, request.workers, lambda b: b[:, 0, 0, 0, 0].sum())

    serve(build)


if __name__ == "__main__":
    main()
