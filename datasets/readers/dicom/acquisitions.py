"""Which slices of a series belong together, where several lie at each position.

Attributes are believed before numbers: an attribute deals the slices if each of its values is a whole stack.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.dealing import (
    Codes,
    Table,
    all_differ,
    is_by_place,
    is_in_halves,
    is_nearly_whole,
    is_separate,
    is_whole,
    ranks,
    runs_through,
    varies,
)
from scanfoundry.datasets.readers.dicom.distinctions import APART, AT_TIMES, IN_TURN, Attribute
from scanfoundry.datasets.readers.dicom.geometry import Grid
from scanfoundry.datasets.readers.scan import ReadError

Elements = Callable[[int], Mapping[int, bytes]]
HIGHEST = 10**7  # an instance number that dcm2niix counts with


def dealt(
    grid: Grid,
    attributes: Sequence[Attribute],
    numbers: Sequence[int],
    elements: Elements = lambda plane: {},
) -> Grid:
    """`grid` with the planes of each position in the order of the volumes that they belong to.

    attributes  those that differ between planes; numbers: instance number of each plane; elements: what else the
    header of a plane holds, by tag, looked at only where the attributes do not suffice
    ReadError where slices differ that must not in one volume, or nothing says which belong together.
    """
    table = np.asarray(grid.members, np.int64)
    for each in attributes:
        codes = ranks(each, table)
        if (each.strength == APART and not is_whole(codes)) or (each.name == "TriggerTime" and is_in_halves(codes)):
            raise ReadError(f"mixed slices: they differ in {each.name}")
    if grid.volumes == 1:
        return grid
    volumes = _Dealing(np.asarray(numbers, np.int64), elements).volumes(table, attributes)
    volumes.sort(key=lambda volume: (min(numbers[plane] for plane in volume), int(volume[0])))
    return replace(grid, members=tuple(tuple(int(plane) for plane in place) for place in np.stack(volumes, axis=1)))


def is_plain(grid: Grid, numbers: Sequence[int]) -> bool:
    """Whether instance numbers run through one volume after the other, each from one end to the other.

    dcm2niix trusts them more than positions: of any other order it drops slices or mixes volumes.
    """
    running = np.asarray(numbers, np.int64)[np.asarray(grid.members)]
    steps = np.diff(running, axis=1)
    return running.min() >= 0 and running.max() <= HIGHEST and bool((steps > 0).all()) and runs_through(running)


class _Dealing:
    def __init__(self, numbers: NDArray[np.int64], elements: Elements) -> None:
        self._numbers, self._elements = numbers, cache(elements)

    def volumes(self, table: Table, attributes: Sequence[Attribute]) -> list[Table]:
        """The planes (positions,) of each volume in `table`. ReadError where that is open or contradictory."""
        if table.shape[1] == 1:
            return [table[:, 0]]
        coded = [(each, ranks(each, table)) for each in attributes]
        coded = [(each, codes) for each, codes in coded if varies(codes)]
        whole = [(each, codes) for each, codes in coded if is_whole(codes)]
        if whole:
            return self._parts(table, whole, attributes)
        for each, codes in coded:
            if is_nearly_whole(codes) or (each.strength == IN_TURN and not all_differ(codes)):
                raise ReadError(f"mixed slices: {each.name} tells acquisitions apart, but not at every position")
        return self._in_turn(table, [(each, codes) for each, codes in coded if each.is_scale and all_differ(codes)])

    def _parts(
        self, table: Table, whole: Sequence[tuple[Attribute, Codes]], attributes: Sequence[Attribute]
    ) -> list[Table]:
        """Dealt by attributes of which each value is a whole stack; together they must be so too."""
        codes = whole[0][1]
        for _, other in whole[1:]:
            codes = np.unique(codes * (other.max() + 1) + other, return_inverse=True)[1].reshape(codes.shape)
        if not is_whole(codes):
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
            if not (runs_through(numbers) or (orders and (is_separate(numbers) or is_by_place(numbers)))):
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
        return [each for each in others if is_whole(ranks(each, table))]

    def _attribute(self, tag: int, table: Table) -> Attribute:
        """The element `tag` of the planes in `table`; other planes have none."""
        values = {int(plane): self._elements(int(plane)).get(tag, b"").decode("latin-1") for plane in table.flat}
        return Attribute(str(tag), AT_TIMES, tuple((values.get(plane, ""),) for plane in range(len(self._numbers))))
