"""What was predicted of all scans together, as one table that grows with them."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from scanfoundry.configs.files import write_json, write_whole
from scanfoundry.configs.text import printable
from scanfoundry.finetune.task_parts import TableRow

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")  # also of full width, which some take for the same


REASON = "reason"  # the last column, where something was not predicted


def write_csv(target: Path, rows: Sequence[TableRow], columns: Sequence[str] = ()) -> None:
    """One line for each scan; `columns` first, then what else a row holds. A cell that a row lacks stays empty.

    Texts are `cell`s.
    """

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer, names = csv.writer(stream), _columns(rows, columns)
            writer.writerow(map(cell, names))
            writer.writerows(_cells(row, names) for row in rows)

    write_whole(target, write)


def cell(value: Any) -> Any:
    """A value as a spreadsheet may open it: a text that it would take for a formula has an apostrophe before it.

    Numbers, also such as are text, stay as they are; control characters are escaped.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    if not _FORMULA.match(value):
        return text
    try:
        float(value)
    except ValueError:
        return f"'{text}"
    return text


def _cells(row: TableRow, names: Sequence[str]) -> list[Any]:
    return [cell(row.get(name, "")) for name in names]


class Table:
    """A table on the disk, CSV or JSON by its suffix, to which rows are added while the batch goes on. JSON begins with
    `conventions`, which say what the numbers mean.

    It is whole after every row; what a kill cuts off, the next start writes anew from its own record.
    """

    def __init__(self, target: Path, columns: Sequence[str], conventions: Mapping[str, str] | None = None) -> None:
        self.target, self.rows = target, list[TableRow]()
        self._columns, self._conventions = list(columns), dict(conventions or {})

    def write(self, rows: Sequence[TableRow]) -> None:
        """Replaces what the table holds."""
        self.rows = list(rows)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.target.suffix == ".json":
            write_json(self.target, {"conventions": self._conventions, "scans": self.rows})
        else:
            write_csv(self.target, self.rows, self._columns)

    def add(self, row: TableRow) -> None:
        """Appends one row; a column that is new to a CSV takes writing it anew."""
        before = _columns(self.rows, self._columns)
        if not self.rows or (self.target.suffix != ".json" and _columns([row], before) != before):
            self.write([*self.rows, row])
            return
        self.rows.append(row)
        if self.target.suffix == ".json":
            self._append_json(row)
            return
        with self.target.open("a", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerow(_cells(row, before))

    def _append_json(self, row: TableRow) -> None:
        text = indent(json.dumps(row, indent=2, allow_nan=False), "    ")
        with self.target.open("r+b") as stream:
            stream.seek(-len(_JSON_END), 2)
            stream.write(f",\n{text}".encode() + _JSON_END)


_JSON_END = b"\n  ]\n}\n"  # as `write_json` ends a list in an object


def only_reasons(target: Path) -> bool:
    """Whether the table at `target` tells of failures alone, so that nothing is lost with it."""
    try:
        if target.suffix == ".json":
            rows = json.loads(target.read_text(encoding="utf-8"))["scans"]
        else:
            with target.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
        return bool(rows) and all(row.get(REASON) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _columns(rows: Sequence[TableRow], first: Sequence[str]) -> list[str]:
    """The columns in their order, that of reasons last."""
    found = dict.fromkeys([*first, *(name for row in rows for name in row)])
    return [name for name in found if name != REASON] + [REASON] * (REASON in found)
