"""What the contenders share: the request, random crops, and the batch as the ordinary DataLoader makes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info

Triple = tuple[int, int, int]  # D, H, W
ENDLESS = 10**9  # samples of an epoch, for those that need a number


@dataclass(frozen=True)
class Request:
    """data: what `prepare` wrote. per_visit: crops taken of a scan at once; batch: crops, a multiple of it."""

    data: Path
    crop: Triple
    per_visit: int
    workers: int
    batch: int = 8
    prefetch: int = 2

    @property
    def visits(self) -> int:
        """Visits to scans per batch."""
        return self.batch // self.per_visit

    @property
    def ahead(self) -> int:
        """Batches that a DataLoader holds ready or under way."""
        return self.workers * self.prefetch


def load(path: Path) -> NDArray:
    """The voxels (D, H, W) of a .nii.gz or .png in native dtype, C order."""
    if path.suffix == ".png":
        from PIL import Image

        return np.asarray(Image.open(path))[None]
    import nibabel

    return np.ascontiguousarray(np.asanyarray(nibabel.load(path).dataobj).T)


def window(shape: Sequence[int], crop: Triple, rng: np.random.Generator) -> tuple[slice, ...]:
    """A random place of a crop in a scan; the whole axis where the scan is smaller."""
    starts = [int(rng.integers(0, max(0, length - size) + 1)) for length, size in zip(shape, crop, strict=True)]
    return tuple(slice(start, start + size) for start, size in zip(starts, crop, strict=True))


def visit(scan: Any, request: Request, rng: np.random.Generator) -> list[torch.Tensor]:
    """Crops (1, D, H, W) of a scan, which is anything with a shape that can be sliced; views where it is in memory."""
    pieces = [scan[window(scan.shape, request.crop, rng)] for _ in range(request.per_visit)]
    return [tensor(fit(piece, request.crop)) for piece in pieces]


def tensor(piece: Any) -> torch.Tensor:
    """(D, H, W) -> (1, D, H, W), without a copy."""
    return (piece if isinstance(piece, torch.Tensor) else torch.from_numpy(piece))[None]


def fit(piece: Any, crop: Triple) -> Any:
    """Zeros around a piece that is smaller than the crop."""
    if tuple(piece.shape) == crop:
        return piece
    whole = np.zeros(crop, np.asarray(piece).dtype)
    low = [(size - length) // 2 for size, length in zip(crop, piece.shape, strict=True)]
    whole[tuple(slice(a, a + n) for a, n in zip(low, piece.shape, strict=True))] = piece
    return whole


def collate(visits: list[list[torch.Tensor]]) -> torch.Tensor:
    """(B, 1, D, H, W), in a worker straight into shared memory, as torch's own collation does.

    Crop by crop: torch's is up to a third slower where crops are views of scans.
    """
    crops = list(chain.from_iterable(visits))
    first = crops[0]
    if get_worker_info() is None:
        out = first.new_empty(len(crops), *first.shape)
    else:
        storage = first._typed_storage()._new_shared(len(crops) * first.numel())
        out = first.new(storage).resize_(len(crops), *first.shape)
    for place, crop in zip(out, crops, strict=True):
        place.copy_(crop)
    return out


def random_generator(salt: int = 0) -> np.random.Generator:
    """A generator that differs between workers."""
    return np.random.default_rng([torch.initial_seed(), salt])


def loader_options(request: Request) -> dict[str, Any]:
    """Of every DataLoader here. No pinned memory: there is no GPU. Workers stay alive from epoch to epoch."""
    if not request.workers:
        return {}
    return {
        "num_workers": request.workers,
        "prefetch_factor": request.prefetch,
        "persistent_workers": True,
        "pin_memory": False,
    }


def endless_map(dataset: Dataset, request: Request) -> Iterator[torch.Tensor]:
    """Batches of a map-style dataset of visits, drawn with replacement: no end of an epoch stops the workers."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=ENDLESS)  # type: ignore[arg-type]
    return iter(
        DataLoader(dataset, batch_size=request.visits, sampler=sampler, collate_fn=collate, **loader_options(request))
    )
