"""webdataset's own pipeline: tar shards, `WebDataset`, `WebLoader`.

Variants by member: `npy`, `file` (.nii.gz or .png as it is), `b2nd` (blosc2 frame, lz4hc, of which the crop alone is
decoded).
Chosen in its favour: no shuffle buffer; a decoder for .npy that makes a view instead of a copy; one shard for each
worker, repeated without end inside the worker, so that no epoch ends; batches are made in the workers.
"""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import torch
import webdataset
from peers.blosc2_peer import compress
from peers.common import Request, collate, load, loader_options, random_generator, visit
from PIL import Image

VARIANTS = ("npy", "file", "b2nd")
SHARDS = 2


def prepare(scans: list[Path], out: Path, variant: str) -> None:
    """One shard for each worker."""
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(out / f"{shard:02d}.tar")) as writer:
            for number, path in enumerate(scans[shard::SHARDS]):
                writer.write({"__key__": f"{number:05d}", variant: encode(path, variant)})


def encode(path: Path, variant: str) -> bytes:
    """A scan as the bytes of a member."""
    if variant == "file":
        return path.read_bytes()
    voxels = load(path)
    if variant == "b2nd":
        return compress(voxels, "lz4hc").to_cframe()
    stream = io.BytesIO()
    np.save(stream, voxels)
    return stream.getvalue()


def decode(data: bytes, variant: str) -> Any:
    """A scan (D, H, W) that can be sliced."""
    if variant == "b2nd":
        return blosc2.ndarray_from_cframe(data)
    if data.startswith(b"\x89PNG"):
        return np.asarray(Image.open(io.BytesIO(data)))[None]
    if variant == "file":
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        return np.asanyarray(image.dataobj).T
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format._read_array_header(stream, version)
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)


class Crops:
    """Sample of webdataset -> crops of its scan."""

    def __init__(self, request: Request, variant: str) -> None:
        self._request, self._variant = request, variant
        self._rng: np.random.Generator | None = None

    def __call__(self, sample: dict[str, Any]) -> list[torch.Tensor]:
        if self._rng is None:
            self._rng = random_generator()
        return visit(decode(sample[self._variant], self._variant), self._request, self._rng)


def batches(request: Request, variant: str) -> Iterator[torch.Tensor]:
    """Endless batches."""
    shards = sorted(str(path) for path in request.data.glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).repeat()
    dataset = dataset.map(Crops(request, variant)).batched(request.visits, collation_fn=collate, partial=False)
    return iter(webdataset.WebLoader(dataset, batch_size=None, **loader_options(request)))
