"""Which slices of a series belong together, where several lie at each position.

Attributes are believed before numbers: an attribute sorts the slices if each of its values is a whole stack. Codes are
the values of an attribute by their order, laid over the positions of the series and the slices at each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.headers.attributes import APART, AT_TIMES, IN_TURN, Attribute
from scanfoundry.datasets.readers.dicom.series.grid import Grid
from scanfoundry.datasets.readers.scan import ReadError

Table = NDArray[np.int64]  # (positions, slices at each), numbers of planes
Codes = NDArray[np.int64]  # the same shape, values by their order


def value_ranks(attribute: Attribute, table: Table) -> Codes:
    """The attribute's values by their order, (positions, volumes)."""
    ordered = sorted(set(attribute.values), key=lambda value: [(isinstance(part, str), part) for part in value])
    numbers = {value: number for number, value in enumerate(ordered)}
    return np.asarray([numbers[value] for value in attribute.values], np.int64)[table]


def varies(codes: Codes) -> bool:
    """Whether slices of one position differ."""
    return bool((codes != codes[:, :1]).any())


def is_complete(codes: Codes) -> bool:
    """Whether every value occurs at each position, equally often."""
    ordered = np.sort(codes, axis=1)
    return bool((ordered == ordered[0]).all())


def is_in_halves(codes: Codes) -> bool:
    """Whether one slice lies at each position, and all up to some height have one value, all others another.

    A time after the heart beat may be another one for each slice, or for each second one; so it is two phases.
    """
    changes = np.flatnonzero(np.diff(codes[:, 0])) + 1
    return bool(codes.shape[1] == 1 and len(changes) == 1 and 2 <= changes[0] <= len(codes) - 2)


def is_nearly_complete(codes: Codes) -> bool:
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


def is_consecutive(numbers: Codes) -> bool:
    """Whether numbers count through one volume after the other, each from one end to the other."""
    steps = np.diff(np.sort(numbers, axis=1), axis=0)
    return is_separate(numbers) and bool((steps > 0).all() or (steps < 0).all())


def is_by_position(numbers: Codes) -> bool:
    """Whether all numbers of the first position lie before (or behind) all of the second, and so on."""
    ends = np.sort(numbers, axis=1)[:, [0, -1]]
    rising, falling = ends[1:, 0] > ends[:-1, 1], ends[1:, 1] < ends[:-1, 0]
    return all_differ(numbers) and bool(rising.all() or falling.all())


Elements = Callable[[int], Mapping[int, bytes]]
HIGHEST = 10**7  # an instance number that dcm2niix counts with


def sort_into_volumes(
    grid: Grid,
    attributes: Sequence[Attribute],
    numbers: Sequence[int],
    elements: Elements = lambda plane: {},
) -> Grid:
    """Sort the planes at each position into the order of the volumes that they belong to.

    Args:
        grid: positions, and the planes at each.
        attributes: those that differ between planes.
        numbers: instance number of each plane.
        elements: what else the header of a plane holds, by tag. Read only where the attributes do not suffice.

    Raises:
        ReadError: slices differ in what must not differ within a volume, or nothing says which of them belong together.
    """
    table = np.asarray(grid.members, np.int64)
    for each in attributes:
        codes = value_ranks(each, table)
        if (each.strength == APART and not is_complete(codes)) or (each.name == "TriggerTime" and is_in_halves(codes)):
            raise ReadError(f"mixed slices: they differ in {each.name}")
    if grid.volumes == 1:
        return grid
    volumes = _VolumeSorter(np.asarray(numbers, np.int64), elements).volumes(table, attributes)
    volumes.sort(key=lambda volume: (min(numbers[plane] for plane in volume), int(volume[0])))
    return replace(grid, members=tuple(tuple(int(plane) for plane in place) for place in np.stack(volumes, axis=1)))


def is_plain(grid: Grid, numbers: Sequence[int]) -> bool:
    """Whether instance numbers run through one volume after the other, each from one end to the other.

    dcm2niix trusts them more than positions: of any other order it drops slices or mixes volumes.
    """
    running = np.asarray(numbers, np.int64)[np.asarray(grid.members)]
    steps = np.diff(running, axis=1)
    return running.min() >= 0 and running.max() <= HIGHEST and bool((steps > 0).all()) and is_consecutive(running)


class _VolumeSorter:
    def __init__(self, numbers: NDArray[np.int64], elements: Elements) -> None:
        self._numbers, self._elements = numbers, cache(elements)

    def volumes(self, table: Table, attributes: Sequence[Attribute]) -> list[Table]:
        """The planes (positions,) of each volume in `table`.

        Raises:
            ReadError: the attributes leave that open, or contradict each other.
        """
        if table.shape[1] == 1:
            return [table[:, 0]]
        coded = [(each, value_ranks(each, table)) for each in attributes]
        coded = [(each, codes) for each, codes in coded if varies(codes)]
        whole = [(each, codes) for each, codes in coded if is_complete(codes)]
        if whole:
            return self._parts(table, whole, attributes)
        for each, codes in coded:
            if is_nearly_complete(codes) or (each.strength == IN_TURN and not all_differ(codes)):
                raise ReadError(f"mixed slices: {each.name} tells acquisitions apart, but not at every position")
        return self._in_turn(table, [(each, codes) for each, codes in coded if each.is_scale and all_differ(codes)])

    def _parts(
        self, table: Table, whole: Sequence[tuple[Attribute, Codes]], attributes: Sequence[Attribute]
    ) -> list[Table]:
        """Dealt by attributes of which each value is a whole stack; together they must be so too."""
        codes = whole[0][1]
        for _, other in whole[1:]:
            codes = np.unique(codes * (other.max() + 1) + other, return_inverse=True)[1].reshape(codes.shape)
        if not is_complete(codes):
            names = " and ".join(each.name for each, _ in whole)
            raise ReadError(f"mixed slices: {names} put them together in different ways")
        order = np.argsort(codes, axis=1, kind="stable")
        table, codes = np.take_along_axis(table, order, 1), np.take_along_axis(codes, order, 1)[0]
        return [one for code in np.unique(codes) for one in self.volumes(table[:, codes == code], attributes)]

    def _in_turn(self, table: Table, ranked: Sequence[tuple[Attribute, Codes]]) -> list[Table]:
        """Dealt by the order in which the slices of each position were taken."""
        orders = {each.name: np.argsort(codes, axis=1) for each, codes in ranked if is_separate(codes)}
        if not orders:
            others = self._others(table)
            if others:
                return self.volumes(table, others)
            numbers = self._numbers[table]
            orders = {each.name: np.argsort(codes, axis=1) for each, codes in ranked if each.strength == IN_TURN}
            if not (is_consecutive(numbers) or (orders and (is_separate(numbers) or is_by_position(numbers)))):
                raise ReadError(f"mixed slices: {table.shape[1]} at each position, and nothing tells which go together")
            orders["InstanceNumber"] = np.argsort(numbers, axis=1)
        first = next(iter(orders.values()))
        if any(not np.array_equal(first, other) for other in orders.values()):
            raise ReadError(f"mixed slices: {' and '.join(orders)} put them together in different ways")
        return list(np.take_along_axis(table, first, 1).T)

    def _others(self, table: Table) -> list[Attribute]:
        """Attributes beyond the known ones of which each value is a whole stack of `table`.

        Two positions show which can be: of a series of thousands of slices no more is read then.
        """
        first, second = ([self._elements(int(plane)) for plane in table[row]] for row in (0, len(table) // 2))
        likely = []
        for tag in sorted({tag for plane in first for tag in plane}):
            values = sorted(plane.get(tag, b"") for plane in first)
            if values[0] != values[-1] and values == sorted(plane.get(tag, b"") for plane in second):
                likely.append(tag)
        others = [self._attribute(tag, table) for tag in likely]
        return [each for each in others if is_complete(value_ranks(each, table))]

    def _attribute(self, tag: int, table: Table) -> Attribute:
        """The element `tag` of the planes in `table`; other planes have none."""
        values = {int(plane): self._elements(int(plane)).get(tag, b"").decode("latin-1") for plane in table.flat}
        return Attribute(str(tag), AT_TIMES, tuple((values.get(plane, ""),) for plane in range(len(self._numbers))))
