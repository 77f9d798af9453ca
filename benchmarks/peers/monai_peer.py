"""MONAI: `RandSpatialCropSamplesd` on a `CacheDataset` or a `PersistentDataset`.

Variants: `cache`, everything decoded in memory, DataLoader with worker processes; `thread`, the same under
`ThreadDataLoader` with worker threads, which MONAI advises for light transforms because nothing is copied between
processes; `persistent`, volumes decoded once into files of its own, loaded whole at each visit; `plain`, CacheDataset
as its documentation shows it, with every default but the dtype, to tell how much of the rest is due to tuning.
Chosen in favour of all but `plain`: no metadata on tensors (`set_track_meta(False)`); the cache is not deep-copied at
each visit (`copy_cache=False`; cropping changes nothing in place); native dtype instead of its float32.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset, ThreadDataLoader, set_track_meta
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, LoadImaged, RandSpatialCropSamplesd, SpatialPadd
from peers.common import ENDLESS, Request, collate, endless_map, load, loader_options
from torch.utils.data import RandomSampler

VARIANTS = ("cache", "thread", "persistent", "plain")


def prepare(scans: list[Path], out: Path, variant: str) -> None:
    """Names of the scans: MONAI decodes them when its data set is made or first read."""
    (out / "scans.txt").write_text("".join(f"{path.resolve()}\n" for path in scans))


def decode(path: str) -> torch.Tensor:
    """(1, D, H, W)."""
    return torch.from_numpy(np.array(load(Path(path))))[None]


def first_key(samples: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """Crops of a visit, without the dictionaries around them."""
    return [sample["image"] for sample in samples]


def batches(request: Request, variant: str) -> Iterator[torch.Tensor]:
    """Endless batches."""
    items = [{"image": path} for path in (request.data / "scans.txt").read_text().split("\n") if path]
    if variant == "plain":
        return plain(items, request)
    set_track_meta(False)
    transform = Compose(
        [
            Lambdad("image", decode, track_meta=False),
            SpatialPadd("image", request.crop),
            RandSpatialCropSamplesd("image", request.crop, request.per_visit, random_size=False),
            first_key,
        ],
        map_items=False,
    )
    dataset: Dataset
    if variant == "persistent":
        dataset = PersistentDataset(items, transform, cache_dir=request.data / "cache")
        for number in range(len(items)):
            dataset[number]
    else:
        dataset = CacheDataset(items, transform, cache_rate=1.0, copy_cache=False, progress=False)
    if variant != "thread":
        return endless_map(dataset, request)
    options = {**loader_options(request), "batch_size": request.visits, "sampler": endless_sampler(dataset)}
    return iter(
        ThreadDataLoader(dataset, buffer_size=request.prefetch, use_thread_workers=True, collate_fn=collate, **options)
    )


def endless_sampler(dataset: Dataset) -> RandomSampler:
    """Scans with replacement, without end."""
    return RandomSampler(dataset, replacement=True, num_samples=ENDLESS)


def plain(items: list[dict[str, str]], request: Request) -> Iterator[torch.Tensor]:
    """Endless batches by defaults; of .nii.gz only."""
    steps = [
        LoadImaged("image", dtype=np.int16),
        EnsureChannelFirstd("image"),
        SpatialPadd("image", request.crop),
        RandSpatialCropSamplesd("image", request.crop, request.per_visit, random_size=False),
    ]
    dataset = CacheDataset(items, Compose(steps), progress=False)
    options = {**loader_options(request), "batch_size": request.visits, "sampler": endless_sampler(dataset)}
    return (batch["image"] for batch in DataLoader(dataset, **options))
