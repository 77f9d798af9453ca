"""`samples.npy`: one row per scan with what the sampling plan needs, so that it need not read every index."""

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import fraction
from scanforge.datasets.shards.format import SampleEntry, ShardRecord

ROW = np.dtype(
    [
        ("shard", "<u4"),  # number in the manifest
        ("sample", "<u4"),  # number in the shard's index
        ("depth", "<u4"),  # slices or frames
        ("flat", "?"),  # an image, or frames that are images of their own
        ("modality", "<u2"),  # number in the manifest's modalities
        ("least", "<f8"),  # smallest `identity.fraction` of the patients under whom it was found
        ("patient", "S32"),  # keyed hash; the manifest's `also` lists those of duplicates
    ]
)


def rows_of(shard: int, entries: Iterable[SampleEntry], modalities: list[str]) -> NDArray[np.void]:
    """The rows of one shard; `modalities` are the manifest's, in its order."""
    rows = [
        (
            shard,
            sample,
            entry.shape[1],
            entry.frames or entry.shape[1] == 1,
            modalities.index(entry.modality),
            min(fraction(patient) for patient in entry.all_patients()),
            entry.patient.encode(),
        )
        for sample, entry in enumerate(entries)
    ]
    return np.array(rows, ROW)


def to_bytes(table: NDArray[np.void]) -> bytes:
    """The table as an .npy file."""
    stream = io.BytesIO()
    np.save(stream, table, allow_pickle=False)
    return stream.getvalue()


def parse_table(content: bytes, name: str, shards: list[ShardRecord], modalities: int) -> NDArray[np.void]:
    """The table in the bytes of an .npy file; UserError names `name` where it does not belong to these shards."""
    try:
        table = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{name} is damaged; copy or build it again") from error
    sizes = np.array([shard.samples for shard in shards])
    if table.dtype != ROW or table.shape != (sizes.sum(),):
        raise UserError(f"{name} is damaged (it has other rows than the manifest); copy or build it again")
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if (
        (table["shard"] != numbers).any()
        or (table["sample"] != within).any()
        or (table["modality"] >= modalities).any()
    ):
        raise UserError(f"{name} is damaged (its rows are out of order); copy or build it again")
    return table
