"""What the tests of the loader compare of a stream of batches."""

import hashlib
from collections.abc import Iterator

from scanfoundry.datasets.batch import Batch


def digest(batch: Batch) -> str:
    """Of the voxels, and of all that is known of each sample."""
    content = hashlib.sha256(batch.voxels.numpy().tobytes() + batch.valid.numpy().tobytes())
    content.update(repr((batch.keys, batch.modalities, batch.sources, batch.seeds.tolist(), batch.step)).encode())
    return content.hexdigest()


def stream(loader: Iterator[Batch], count: int) -> list[str]:
    """The digests of the next batches."""
    return [digest(next(loader)) for _ in range(count)]
