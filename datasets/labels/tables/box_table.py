"""The boxes of a table, one a line."""

from collections.abc import Callable, Sequence
from pathlib import Path

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.datasets.labels.tables.box_columns import KNOWN, BoxColumns, find_box_columns, whole_boxes
from scanfoundry.datasets.labels.tables.columns import value_of
from scanfoundry.datasets.labels.tables.rows import TableRow, column_named, listed
from scanfoundry.datasets.readers.box_labels import why_no_voxels
from scanfoundry.datasets.readers.labels import Box

_CLASSES = ("class", "class_name", "category", "category_name")
_MOST_REVERSED = 0.1  # share of boxes that end before they begin: more are no slips of the hand


def wanted_boxes(
    path: Path, columns: Sequence[str], id_column: str, label: str | None
) -> tuple[BoxColumns, str | None]:
    """The columns of the boxes, and that of their class (`label` where it is named), of a list of boxes alone.

    Raises:
        UserError: there are no such columns, or nothing says how to read them.
    """
    boxed = find_box_columns(path, columns)
    if boxed is None and (whole := whole_boxes(columns)):
        raise UserError(
            f"{path}: column '{whole}' holds a box in one cell, and nobody says whether it is corners or a corner and "
            f"a size: write it as columns ({KNOWN})"
        )
    if boxed is None:
        raise UserError(f"{path} has no columns of boxes ({KNOWN}); it has: {listed(columns)}")
    if label is not None:
        return boxed, label
    known = {column for name in _CLASSES if (column := column_named(columns, name)) and column != id_column}
    label = column_named(columns, "label")
    if label is None and len(known) > 1:
        names = sorted(known)
        raise UserError(f"{path}: the class of a box may be {' or '.join(names)}: set task.label_column={names[0]}")
    return boxed, label or next(iter(known), None)


class BoxReader:
    """Reads the boxes of each scan, and judges at the end whether the columns are what they are called.

    drop counts a box that is left out by its reason; mistakes are kept in `mistakes`.
    """

    def __init__(
        self, path: Path, columns: BoxColumns, label: str | None, mistakes: Mistakes, drop: Callable[[str], None]
    ) -> None:
        self._path, self._columns, self._label = path, columns, label
        self._mistakes, self._drop = mistakes, drop
        self._all = self._reversed = 0

    def of(self, name: str, lines: Sequence[TableRow]) -> tuple[Box, ...]:
        """The boxes (half-open, voxels) in the lines of one scan; a line may be without any."""
        boxes = []
        for line in lines:
            where = f"{self._path}: the box of '{name}' (line {line.line})"
            try:
                corners = self._columns.corners({each: value_of(line[each]) for each in self._columns.names})
            except ValueError:
                self._mistakes.add(f"{where} has a coordinate that is no number")
                continue
            if corners is None:
                continue
            x0, y0, z0, x1, y1, z1 = corners
            self._all += 1
            self._reversed += x1 < x0 or y1 < y0 or z1 < z0
            if why := why_no_voxels(x0, y0, x1, y1):
                self._mistakes.add(f"{where} {why}")
            elif x0 < x1 and y0 < y1 and z0 < z1:
                label = value_of(line[self._label]) if self._label else ""
                boxes.append(Box((z0, y0, x0), (z1, y1, x1), label or "finding"))
            else:
                self._drop("boxes without extent")
        return tuple(boxes)

    def judge(self) -> None:
        """Keeps a mistake where so many boxes are reversed that the columns must be something else."""
        if self._reversed > _MOST_REVERSED * self._all:
            x, y = self._columns.x, self._columns.y
            self._mistakes.add(
                f"{self._path}: {self._reversed} of {self._all} boxes end before they begin: are {x[1]} and {y[1]} a "
                "width and a height? Call them x, y, w, h then"
            )
