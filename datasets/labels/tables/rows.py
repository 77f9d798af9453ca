"""The lines of a CSV file, as spreadsheets and programs write them."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scanfoundry.configs.errors import Mistakes, UserError

_SEPARATORS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
_BEFORE = re.compile(r"\s*(?:sep=(.)[ \t]*(?:\r\n|\r|\n)\s*)?", re.IGNORECASE)  # blank lines, and Excel's own first one
_BREAK = re.compile(r"\r\n|\r|\n")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SHOWN = 20  # columns in a message


class TableRow(dict[str, str]):
    """Cells without their margins by column; `line` is where it stands in its file."""

    line: int = 0


def read_rows(path: Path) -> tuple[list[str], list[TableRow]]:
    """Columns and lines of a CSV file (comma, semicolon, tab or |; UTF-8 or UTF-16), blank lines left aside.

    Of two columns of one name that differ, both get a number ('class.1'): neither is the one that is meant.

    Raises:
        UserError: the file cannot be read, a quote is not closed, or lines have more cells than the first one.
    """
    text = _text(path)
    before = _BEFORE.match(text)
    assert before is not None
    body = text[before.end() :]
    header = _QUOTED.sub("", _BREAK.split(body, maxsplit=1)[0])
    separator = before[1] or max(_SEPARATORS, key=lambda each: (header.count(each), body.count(each)))
    skipped = len(_BREAK.findall(before[0]))
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                lines.append((reader.line_num + skipped, cells))
    except csv.Error as error:
        where = reader.line_num + skipped
        raise UserError(f"cannot read the list {path}: line {where}: {error}; is a quote not closed?") from error
    if not lines:
        raise UserError(f"the list {path} is empty")
    return _rows(path, lines[0][1], lines[1:])


def column_named(columns: Sequence[str], wanted: str) -> str | None:
    """The column of this name, else the only one that differs from it in case and margins alone."""
    if wanted in columns:
        return wanted
    alike = [column for column in columns if column.strip().casefold() == wanted.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def listed(columns: Sequence[str]) -> str:
    """Names of columns for a message; a list of one is mostly a file with another separator, or without a header."""
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    hint = " (one column; cells are separated by comma, semicolon or tab)" if len(columns) == 1 else ""
    return f"{', '.join(columns[:_SHOWN])}{more}{hint}"


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error
    encoding = "utf-16" if content.startswith(_UTF_16) and not content.startswith(codecs.BOM_UTF32_LE) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"cannot read the list {path}: line {line} is not UTF-8; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"cannot read the list {path}: it holds zero bytes, so it is no text, or no UTF-8; save it so")
    return text


def _rows(path: Path, names: list[str], lines: Sequence[tuple[int, list[str]]]) -> tuple[list[str], list[TableRow]]:
    mistakes = Mistakes(str(path))
    for number, cells in lines:
        if any(cells[len(names) :]):
            mistakes.add(f"{path}: line {number} has more cells ({len(cells)}) than the first line ({len(names)})")
    mistakes.raise_if_any()
    count = len(names)
    padded = [cells[:count] if len(cells) >= count else cells + [""] * (count - len(cells)) for _, cells in lines]
    kept = [place for place in range(count) if not _superfluous(names, place, padded)]
    unique = _unique_names([names[place] for place in kept])
    rows = []
    for (number, _), cells in zip(lines, padded, strict=True):
        row = TableRow(zip(unique, cells if len(kept) == count else [cells[place] for place in kept], strict=True))
        row.line = number
        rows.append(row)
    return unique, rows


def _superfluous(names: Sequence[str], place: int, lines: Sequence[Sequence[str]]) -> bool:
    """Whether a column has neither name nor cells, or says what one of its name says before it."""
    if not names[place] and not any(cells[place] for cells in lines):
        return True
    before = [other for other in range(place) if names[other] == names[place]]
    return any(all(cells[other] == cells[place] for cells in lines) for other in before)


def _unique_names(names: Sequence[str]) -> list[str]:
    counts, seen, unique = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        unique.append(f"{name}.{seen[name]}" if counts[name] > 1 else name)
    return unique
