"""Exclusion maps: the voxels of a scan's mask that no loss may look at (defaced regions, burned-in text, implants)."""

from contextlib import closing
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards.format import SampleEntry
from scanfoundry.datasets.shards.reader import BadSample, DataSet, Region, ShardReader

ANY = "*"

# The name of one of the mask's values, or its number; '*' for all but 0.
Excluded = Annotated[str, Field(min_length=1)]


def values_of(entry: SampleEntry, label: Excluded) -> list[int] | None:
    """The values of the scan's mask that `label` means: none where it has no such mask; None for all but 0."""
    if entry.mask is None:
        return []
    if label == ANY:
        return None
    names = entry.labels.names if entry.labels is not None else {}
    values = [value for value, name in names.items() if name == label and value > 0]
    if not values and label.isascii() and label.isdigit() and int(label) > 0:
        values = [int(label)]
    return values


def require(data: DataSet, source: str, label: Excluded) -> None:
    """UserError where no scan of the source has such a label; reads as far as the first scan that has."""
    known: set[str] = set()
    for shard in data.manifest.shards:
        with closing(ShardReader(data.store, shard)) as reader:
            if any(_has(reader, number, label, known) for number in range(len(reader.entries))):
                return
    found = f"these have {', '.join(sorted(known))}" if known else "there are no names of masks either"
    raise UserError(f"source '{source}': no mask of {data.store.shown('')} has '{label}' (exclude); {found}")


def _has(reader: ShardReader, number: int, label: Excluded, known: set[str]) -> bool:
    entry = reader.entries[number]
    if entry.mask is None:
        return False
    names = set() if entry.labels is None else set(entry.labels.names.values())
    known |= names
    try:
        # A number may mean nothing: a mask must have it.
        return label in names or read_excluded(reader, number, _whole(entry), label) is not None
    except BadSample:
        return False


def _whole(entry: SampleEntry) -> Region:
    _, depth, height, width = entry.shape
    return slice(0, depth), slice(0, height), slice(0, width)


def read_excluded(reader: ShardReader, number: int, region: Region, label: Excluded) -> NDArray[np.bool_] | None:
    """(d, h, w) bool, True on the excluded voxels of `region` of a scan; None where there is none. Or BadSample."""
    values = values_of(reader.entries[number], label)
    if values == []:
        return None
    mask = reader.read_mask(number, region)
    if mask is None:
        return None
    found = mask != 0 if values is None else np.isin(mask, values)
    return found if found.any() else None
