"""How the values of an attribute lie over the positions of a series and the slices at each."""

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.distinctions import Attribute

Table = NDArray[np.int64]  # (positions, slices at each), numbers of planes
Codes = NDArray[np.int64]  # the same shape, values by their order


def ranks(attribute: Attribute, table: Table) -> Codes:
    """The attribute's values by their order, (positions, volumes)."""
    ordered = sorted(set(attribute.values), key=lambda value: [(isinstance(part, str), part) for part in value])
    numbers = {value: number for number, value in enumerate(ordered)}
    return np.asarray([numbers[value] for value in attribute.values], np.int64)[table]


def varies(codes: Codes) -> bool:
    """Whether slices of one position differ."""
    return bool((codes != codes[:, :1]).any())


def is_whole(codes: Codes) -> bool:
    """Whether every value occurs at each position, equally often."""
    ordered = np.sort(codes, axis=1)
    return bool((ordered == ordered[0]).all())


def is_in_halves(codes: Codes) -> bool:
    """Whether one slice lies at each position, and all up to some height have one value, all others another.

    A time after the heart beat may be another one for each slice, or for each second one; so it is two phases.
    """
    changes = np.flatnonzero(np.diff(codes[:, 0])) + 1
    return bool(codes.shape[1] == 1 and len(changes) == 1 and 2 <= changes[0] <= len(codes) - 2)


def is_nearly_whole(codes: Codes) -> bool:
    """Whether as many values as there are volumes occur, at most of the positions all of them, but not at each."""
    if len(np.unique(codes)) != codes.shape[1]:
        return False
    return bool((np.diff(np.sort(codes, axis=1), axis=1) != 0).all(axis=1).mean() > 0.5)


def all_differ(codes: Codes) -> bool:
    """Whether the slices of each position all have another value."""
    return bool((np.diff(np.sort(codes, axis=1), axis=1) != 0).all())


def is_separate(codes: Codes) -> bool:
    """Whether the first of all positions lie before the second of all positions, and so on."""
    ordered = np.sort(codes, axis=1)
    return all_differ(codes) and bool((ordered[:, 1:].min(axis=0) > ordered[:, :-1].max(axis=0)).all())


def runs_through(numbers: Codes) -> bool:
    """Whether numbers count through one volume after the other, each from one end to the other."""
    steps = np.diff(np.sort(numbers, axis=1), axis=0)
    return is_separate(numbers) and bool((steps > 0).all() or (steps < 0).all())


def is_by_place(numbers: Codes) -> bool:
    """Whether all numbers of the first position lie before (or behind) all of the second, and so on."""
    ends = np.sort(numbers, axis=1)[:, [0, -1]]
    rising, falling = ends[1:, 0] > ends[:-1, 1], ends[1:, 1] < ends[:-1, 0]
    return all_differ(numbers) and bool(rising.all() or falling.all())
