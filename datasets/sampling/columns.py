"""What the sampling plan keeps of the table of a source: compact columns, read without the whole table in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.shards.hashes import HALVES, halves_of


@dataclass(frozen=True)
class Columns:
    """Scans of one source, a row for each.

    Attributes:
        shard: number in the manifest.
        sample: number in the shard's index.
        flat: an image, or frames that are images of their own.
        modality: number in the manifest's modalities.
        held_out: of a patient that is never sampled.
        patient: `HALVES` of its keyed hash; empty where the source has no patients.
        study: keyed hash, empty text where it was not kept; empty where studies are not asked for.
    """

    shard: NDArray[np.uint32]
    sample: NDArray[np.uint32]
    flat: NDArray[np.bool_]
    modality: NDArray[np.uint16]
    held_out: NDArray[np.bool_]
    patient: NDArray[np.void]
    study: NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.shard)

    def rows(self, chosen: NDArray[np.bool_]) -> "Columns":
        """The chosen rows; the same object where all are."""
        if chosen.all():
            return self
        columns = (getattr(self, field.name) for field in fields(self))
        return Columns(*(column[chosen] if len(column) else column for column in columns))


def read_columns(
    blocks: Iterator[NDArray[np.void]], rows: int | None, holdout: float, patients: bool, studies: bool
) -> Columns:
    """The columns of a source.

    Args:
        blocks: of its table, in the order of its rows.
        rows: in all blocks together; None: the first block is all.
        holdout: share of patients that are held out.
        patients: whether it has any.
        studies: whether to keep them, where the table has them.

    Raises:
        UserError: the table cannot be read or is damaged.
    """
    first = next(blocks)
    rows = len(first) if rows is None else rows
    keep_studies = studies and "study" in (first.dtype.names or ())
    found = Columns(
        np.empty(rows, np.uint32),
        np.empty(rows, np.uint32),
        np.empty(rows, bool),
        np.empty(rows, np.uint16),
        np.empty(rows, bool),
        np.empty(rows if patients else 0, HALVES),
        np.empty(rows if keep_studies else 0, "S32"),
    )
    begin = 0
    for block in chain([first], blocks):
        part = slice(begin, begin := begin + len(block))
        found.shard[part], found.sample[part] = block["shard"], block["sample"]
        found.flat[part], found.modality[part] = block["flat"], block["modality"]
        found.held_out[part] = block["least"] < holdout
        if patients:
            found.patient[part] = halves_of(block["patient"])
        if keep_studies:
            found.study[part] = block["study"]
    return found
