"""Labels in a CSV file: classes, numbers, boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.datasets.labels.tables.box_columns import find_box_columns
from scanfoundry.datasets.labels.tables.box_table import BoxReader, wanted_boxes
from scanfoundry.datasets.labels.tables.choice import StoredColumn, named
from scanfoundry.datasets.labels.tables.choice import chosen as chosen_columns
from scanfoundry.datasets.labels.tables.columns import value_of
from scanfoundry.datasets.labels.tables.rows import TableRow, column_named, listed, read_rows
from scanfoundry.datasets.readers.labels import LabelRef

ID_COLUMNS = ("id", "file", "filename", "image", "name")  # the first that is there


@dataclass
class FoundLabels:
    """Labels by the name of their scan, and what was left out.

    Attributes:
        refs: (name of the scan, its labels).
        notes: for people.
        left_out: counts by reason.
        columns: of a list, by which one may have been asked for.
    """

    refs: list[tuple[str, LabelRef]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count something that is left out."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


@dataclass(frozen=True)
class Columns:
    """The columns of a list that a person has named. None: they are found by their names.

    Attributes:
        id: column with the names of the scans.
        classes: columns of classes. A study on the site's own machine takes them as they are.
        box_class: column with the classes of boxes.
        asked: of a build: columns to store with the scans beside those of agreed names; see `choice.chosen`.
        insist: do not refuse a column that was asked for, or a label of a box or mask, that may identify a person.
    """

    id: str | None = None
    classes: tuple[str, ...] | None = None
    box_class: str | None = None
    asked: tuple[str, ...] = ()
    insist: bool = True


def read_table(path: Path, chosen: Columns | None = None, kept: Mistakes | None = None) -> FoundLabels:
    """Read the labels in a CSV file.

    One line is one scan or, with the columns of `box_columns`, one box (half-open, in voxels). A scan whose box is
    blank was looked at and has none. `choice.chosen` decides which other columns are stored, and the notes say which.

    Args:
        path: of the file.
        chosen: columns that a person has named.
        kept: keeps the mistakes of single lines; None: they are raised.

    Raises:
        UserError: the file is damaged, has no column with names of scans, or names a scan twice.
    """
    chosen = chosen or Columns()
    columns, rows = _as_named(path, chosen)
    id_column = _chosen_id(path, columns, chosen)
    boxed = None if chosen.classes else find_box_columns(path, columns)
    label = chosen.box_class or column_named(columns, "label")
    if chosen.classes == ():
        boxed, label = wanted_boxes(path, columns, id_column, chosen.box_class)
    special = {*(boxed.names if boxed else ()), id_column} | ({label} if boxed and label else set())
    mistakes = Mistakes(str(path)) if kept is None else kept
    scans = _by_scan(path, rows, id_column, bool(boxed), mistakes)
    found = FoundLabels(columns=columns)
    found.drop("lines without an id", len(rows) - sum(map(len, scans.values())))
    if chosen.classes is None:
        others = [column for column in columns if column not in special]
        taken = _taken(path, others, named(path, columns, chosen.asked), scans, found, chosen.insist)
    else:
        taken = dict.fromkeys(chosen.classes, StoredColumn("class"))
    boxes = BoxReader(path, boxed, label, mistakes, found.drop) if boxed else None
    for name, lines in scans.items():
        cells = {column: value_of(lines[0][column]) for column in taken}
        values = {column: taken[column].stored(cell) for column, cell in cells.items() if cell}
        ref = LabelRef(
            boxes=boxes.of(name, lines) if boxes else None,
            flat_boxes=boxed is not None and boxed.z is None,
            classes={column.strip(): value for column, value in values.items() if isinstance(value, str)},
            targets={column.strip(): value for column, value in values.items() if isinstance(value, float)},
        )
        found.refs.append((name, ref))
    if boxes:
        boxes.judge()
    if kept is None:
        mistakes.raise_if_any()
    return found


def _as_named(path: Path, chosen: Columns) -> tuple[list[str], list[TableRow]]:
    """Columns and lines, a column that differs from a name of `chosen` in case alone called by that name."""
    columns, rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} has a first line, but no scan below it")
    for wanted in (chosen.id, *(chosen.classes or ()), chosen.box_class):
        if wanted is not None and (column := column_named(columns, wanted)) not in (None, wanted):
            columns[columns.index(str(column))] = wanted
            for row in rows:
                row[wanted] = row.pop(str(column))
    return columns, rows


def _by_scan(
    path: Path, rows: Sequence[TableRow], id_column: str, several: bool, mistakes: Mistakes
) -> dict[str, list[TableRow]]:
    """Lines by the name of their scan; each has one, unless they may be `several`."""
    scans: dict[str, list[TableRow]] = {}
    for row in rows:
        name = row[id_column]
        if "\n" in name or "\r" in name:
            mistakes.add(f"{path}: the name at line {row.line} goes over several lines: is a quote not closed?")
        elif name:
            scans.setdefault(name, []).append(row)
            if len(scans[name]) == 2 and not several:
                numbers = f"lines {scans[name][0].line} and {row.line}"
                mistakes.add(f"{path} names '{name}' twice ({numbers}); give one line for each scan")
    return scans


def _chosen_id(path: Path, columns: list[str], chosen: Columns) -> str:
    """The column that tells the scans apart; UserError where it, or another that was named, is not there."""
    for wanted in (chosen.id, *(chosen.classes or ()), chosen.box_class):
        if wanted is not None and wanted not in columns:
            raise UserError(f"{path} has no column '{wanted}'; it has: {listed(columns)}")
    found = chosen.id or next((column for name in ID_COLUMNS if (column := column_named(columns, name))), None)
    if found is None:
        raise UserError(
            f"{path} has no column {', '.join(ID_COLUMNS)} to tell the scans by; its first line has: {listed(columns)}"
        )
    return found


def _taken(
    path: Path,
    columns: Sequence[str],
    asked: Sequence[str],
    scans: dict[str, list[TableRow]],
    found: FoundLabels,
    insist: bool,
) -> dict[str, StoredColumn]:
    """What of `columns` is stored; UserError where one that was asked for places the labels."""
    if special := [column for column in asked if column not in columns]:
        raise UserError(f"{path}: column '{special[0]}' of --label-columns places the labels and cannot be one")
    cells: dict[str, list[str] | None] = {}
    for column in columns:
        each = [{value_of(line[column]) for line in lines} for lines in scans.values()]
        cells[column] = None if any(len(values) > 1 for values in each) else [next(iter(values)) for values in each]
    taken, notes = chosen_columns(path, cells, asked, insist)
    found.notes += notes
    return taken
