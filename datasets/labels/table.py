"""Labels in a CSV file: classes, numbers, boxes."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scanforge.configs.errors import UserError
from scanforge.datasets.labels.columns import kind_of, value_of
from scanforge.datasets.labels.labels import Box, LabelRef

ID_COLUMNS = ("id", "file", "filename", "image", "name")  # the first that is there
_BOX = ("x0", "y0", "x1", "y1")
_DEPTH = ("z0", "z1")
Row = dict[str, str]


@dataclass
class Found:
    """Labels by the name of their scan, and what was left out: notes for people, counts by reason."""

    refs: list[tuple[str, LabelRef]] = field(default_factory=list)
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
    """One line per scan, or with the columns x0, y0, x1, y1[, z0, z1][, label] one line per box (half-open, voxels).

    A line whose box is blank: looked, and there is none. Other columns are classes or numbers by `columns.kind_of`;
    those left out are named in `notes`. UserError for a damaged file, no id column, a scan named twice.
    """
    chosen = chosen or Columns()
    columns, rows = read_rows(path)
    by_lower = {column.strip().lower(): column for column in columns}
    id_column = _chosen_id(path, columns, chosen)
    boxed = not chosen.classes and all(name in by_lower for name in _BOX)
    label = chosen.box_class or by_lower.get("label")
    special = {by_lower[name] for name in (*_BOX, *_DEPTH) if boxed and name in by_lower} | {id_column}
    special |= {label} if boxed and label else set()
    scans: dict[str, list[Row]] = {}
    for row in rows:
        if name := (row[id_column] or "").strip():
            scans.setdefault(name, []).append(row)
    if not boxed and (doubled := next((name for name, lines in scans.items() if len(lines) > 1), None)):
        raise UserError(f"{path} names '{doubled}' twice")
    found = Found()
    found.drop("lines without an id", len(rows) - sum(map(len, scans.values())))
    if chosen.classes is None:
        kinds = _kinds(path, [column for column in columns if column not in special], scans, found)
    else:
        kinds = dict.fromkeys(chosen.classes, "class")
    for name, lines in scans.items():
        values = {column: value_of(lines[0][column]) for column in kinds}
        ref = LabelRef(
            boxes=_boxes(path, name, lines, by_lower, label, found) if boxed else None,
            flat_boxes=boxed and not all(depth in by_lower for depth in _DEPTH),
            classes={column.strip(): cell for column, cell in values.items() if cell and kinds[column] == "class"},
            targets={
                column.strip(): float(cell) for column, cell in values.items() if cell and kinds[column] == "target"
            },
        )
        found.refs.append((name, ref))
    return found


def _chosen_id(path: Path, columns: list[str], chosen: Columns) -> str:
    """The column that tells the scans apart; UserError where it, or another that was named, is not there."""
    for wanted in (chosen.id, *(chosen.classes or ()), chosen.box_class):
        if wanted is not None and wanted not in columns:
            raise UserError(f"{path} has no column '{wanted}'; it has: {', '.join(columns)}")
    by_lower = {column.strip().lower(): column for column in columns}
    found = chosen.id or next((by_lower[name] for name in ID_COLUMNS if name in by_lower), None)
    if found is None:
        raise UserError(f"{path} has no column {', '.join(ID_COLUMNS)} to tell the scans by; it has: {columns}")
    return found


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and lines of a CSV file (comma, semicolon or tab); UserError where it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        first = text.split("\n", 1)[0]
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), restval="")
        columns, rows = [str(name) for name in lines.fieldnames or []], list(lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the list {path}: {error}") from error
    if any(None in row for row in rows):
        raise UserError(f"{path}: a line has more cells than the first one")
    return columns, rows


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


def _boxes(
    path: Path, name: str, lines: list[Row], by_lower: dict[str, str], label: str | None, found: Found
) -> tuple[Box, ...]:
    boxes = []
    for line in lines:
        cells = {each: value_of(line[by_lower[each]]) for each in (*_BOX, *_DEPTH) if each in by_lower}
        if not any(cells[each] for each in _BOX):
            continue
        try:
            x0, y0, x1, y1 = (float(cells[each]) for each in _BOX)
            z0, z1 = float(cells.get("z0") or 0), float(cells.get("z1") or 1)
        except ValueError as error:
            raise UserError(f"{path}: the box of '{name}' has a coordinate that is no number") from error
        if x0 < x1 and y0 < y1 and z0 < z1:
            boxes.append(Box((z0, y0, x0), (z1, y1, x1), (value_of(line[label]) if label else "") or "finding"))
        else:
            found.drop("boxes without extent")
    return tuple(boxes)
