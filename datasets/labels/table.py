"""Labels in a CSV file: classes, numbers, boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scanforge.configs.errors import Mistakes, UserError
from scanforge.datasets.labels.box_columns import KNOWN, BoxColumns, find_box_columns, whole_boxes
from scanforge.datasets.labels.boxes import why_no_voxels
from scanforge.datasets.labels.columns import kind_of, value_of
from scanforge.datasets.labels.labels import Box, LabelRef
from scanforge.datasets.labels.rows import Row, column_named, listed, read_rows

ID_COLUMNS = ("id", "file", "filename", "image", "name")  # the first that is there
_BOX_CLASSES = ("class", "class_name", "category", "category_name")  # where boxes alone are wanted, without 'label'
_MOST_REVERSED = 0.1  # share of boxes that end before they begin: more are no slips of the hand


@dataclass
class Found:
    """Labels by the name of their scan or folder, and what was left out: notes for people, counts by reason."""

    refs: list[tuple[str, LabelRef]] = field(default_factory=list)
    of_folders: list[tuple[str, LabelRef]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts what is left out."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


@dataclass(frozen=True)
class Columns:
    """Which columns a person has named: that of the scans, those of classes, that of the boxes' classes.

    None: found by their names. Named ones are taken whatever `columns.kind_of` thinks of them.
    """

    id: str | None = None
    classes: tuple[str, ...] | None = None
    box_class: str | None = None


def read_table(path: Path, chosen: Columns | None = None) -> Found:
    """One line per scan, or with the columns of a box (`box_columns`) one line per box (half-open, voxels).

    A line whose box is blank: looked, and there is none. Other columns are classes or numbers by `columns.kind_of`;
    those left out are named in `notes`. UserError for a damaged file, no id column, a scan named twice, boxes that are
    no voxels.
    """
    chosen = chosen or Columns()
    columns, rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} has a first line, but no scan below it")
    id_column, classes, box_class = _chosen(path, columns, chosen)
    boxed = None if chosen.classes else find_box_columns(path, columns)
    if boxed is None and chosen.classes == ():
        raise UserError(_why_no_boxes(path, columns))
    label = box_class or column_named(columns, "label")
    if label is None and chosen.classes == ():
        label = _box_classes(path, columns, id_column)
    special = {*(boxed.names if boxed else ()), id_column} | ({label} if boxed and label else set())
    mistakes, found = Mistakes(str(path)), Found()
    scans = _by_scan(path, rows, id_column, mistakes)
    if boxed is None:
        for name, lines in scans.items():
            if len(lines) > 1:
                numbers = " and ".join(str(row.line) for row in lines[:2])
                mistakes.add(f"{path} names '{name}' twice (lines {numbers}); one line for each scan")
    found.drop("lines without an id", len(rows) - sum(map(len, scans.values())))
    if chosen.classes is None:
        kinds = _kinds(path, [column for column in columns if column not in special], scans, found)
    else:
        kinds = dict.fromkeys(classes.values(), "class")
    asked = {column: name for name, column in classes.items()}
    boxes = _Boxes(path, boxed, label, mistakes, found) if boxed else None
    for name, lines in scans.items():
        values = {column: value_of(lines[0][column]) for column in kinds}
        ref = LabelRef(
            boxes=boxes.of(name, lines) if boxes else None,
            flat_boxes=boxed is not None and boxed.z is None,
            classes={asked.get(column, column): cell for column, cell in values.items() if cell and kinds[column] == "class"},
            targets={column: float(cell) for column, cell in values.items() if cell and kinds[column] == "target"},
        )
        found.refs.append((name, ref))
    if boxes:
        boxes.judge()
    mistakes.tell()
    return found


def _chosen(path: Path, columns: Sequence[str], chosen: Columns) -> tuple[str, dict[str, str], str | None]:
    """The column that tells the scans apart, those of classes by the name they were asked by, that of the boxes' class;
    UserError where the first, or another that was named, is not there."""
    actual: dict[str, str] = {}
    for wanted in (chosen.id, *(chosen.classes or ()), chosen.box_class):
        if wanted is not None:
            column = column_named(columns, wanted)
            if column is None:
                raise UserError(f"{path} has no column '{wanted}'; it has: {listed(columns)}")
            actual[wanted] = column
    known = [column for name in ID_COLUMNS if (column := column_named(columns, name))]
    if not known and chosen.id is None:
        raise UserError(
            f"{path} has no column {', '.join(ID_COLUMNS)} to tell the scans by; its first line has: {listed(columns)}"
        )
    id_column = actual[chosen.id] if chosen.id is not None else known[0]
    box_class = actual[chosen.box_class] if chosen.box_class is not None else None
    return id_column, {name: actual[name] for name in chosen.classes or ()}, box_class


def _by_scan(path: Path, rows: Sequence[Row], id_column: str, mistakes: Mistakes) -> dict[str, list[Row]]:
    scans: dict[str, list[Row]] = {}
    for row in rows:
        if "\n" in row[id_column] or "\r" in row[id_column]:
            mistakes.add(f"{path}: the name at line {row.line} goes over several lines: is a quote not closed?")
        elif row[id_column]:
            scans.setdefault(row[id_column], []).append(row)
    return scans


def _why_no_boxes(path: Path, columns: Sequence[str]) -> str:
    if whole := whole_boxes(columns):
        return (
            f"{path}: column '{whole}' holds a box in one cell, and nobody says whether it is corners or a corner and "
            f"a size: write it as columns ({KNOWN})"
        )
    return f"{path} has no columns of boxes ({KNOWN}); it has: {listed(columns)}"


def _box_classes(path: Path, columns: Sequence[str], id_column: str) -> str | None:
    known = {column for name in _BOX_CLASSES if (column := column_named(columns, name)) and column != id_column}
    if len(known) > 1:
        names = sorted(known)
        raise UserError(f"{path}: the class of a box may be {' or '.join(names)}: set task.label_column={names[0]}, ...")
    return next(iter(known), None)


def _kinds(path: Path, columns: Sequence[str], scans: dict[str, list[Row]], found: Found) -> dict[str, str]:
    kinds = {}
    for column in columns:
        cells = [{value_of(line[column]) for line in lines} for lines in scans.values()]
        if any(len(each) > 1 for each in cells):
            kind, why = "", "differs between the lines of one scan (the boxes' classes go into a column 'label')"
        else:
            kind, why = kind_of(column, [next(iter(each)) for each in cells])
        if kind:
            kinds[column] = kind
        else:
            found.notes.append(f"{path.name}: column '{column}' left out: {why}")
    return kinds


class _Boxes:
    """Reads the boxes of each scan, and judges at the end whether the columns are what they are called."""

    def __init__(self, path: Path, columns: BoxColumns, label: str | None, mistakes: Mistakes, found: Found) -> None:
        self._path, self._columns, self._label = path, columns, label
        self._mistakes, self._found = mistakes, found
        self._all = self._reversed = 0

    def of(self, name: str, lines: Sequence[Row]) -> tuple[Box, ...]:
        """The boxes of one scan; mistakes are kept."""
        boxes = []
        for line in lines:
            try:
                corners = self._columns.corners({each: value_of(line[each]) for each in self._columns.names})
            except ValueError:
                self._mistakes.add(
                    f"{self._path}: the box of '{name}' (line {line.line}) has a coordinate that is no number"
                )
                continue
            if corners is None:
                continue
            x0, y0, z0, x1, y1, z1 = corners
            self._all += 1
            self._reversed += x1 < x0 or y1 < y0 or z1 < z0
            if why := why_no_voxels(x0, y0, x1, y1):
                self._mistakes.add(f"{self._path}: the box of '{name}' (line {line.line}) {why}")
            elif x0 < x1 and y0 < y1 and z0 < z1:
                label = value_of(line[self._label]) if self._label else ""
                boxes.append(Box((z0, y0, x0), (z1, y1, x1), label or "finding"))
            else:
                self._found.drop("boxes without extent")
        return tuple(boxes)

    def judge(self) -> None:
        """Keeps a mistake where so many boxes are reversed that the columns must be something else."""
        if self._reversed > _MOST_REVERSED * self._all:
            x, y = self._columns.x, self._columns.y
            self._mistakes.add(
                f"{self._path}: {self._reversed} of {self._all} boxes end before they begin: are {x[1]} and {y[1]} a width "
                "and a height? Call them x, y, w, h then"
            )
