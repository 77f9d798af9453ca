"""Classes and numbers out of the cells of a list."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.configs.parsing.checking import near
from scanfoundry.datasets.labels.tables.columns import value_of
from scanfoundry.finetune.config.tasks.labels import ReadsClasses, ReadsValues
from scanfoundry.finetune.formats.spelling import MOST_SHOWN, among, as_option, number_of, one_spelling

Cells = Mapping[str, Mapping[str, str | float]]  # name of the scan: column: cell
_COMMA = re.compile(r"[+-]?\d+,\d+")


def class_of_each(
    cells: Cells, task: ReadsClasses, where: str, mistakes: Mistakes, notes: list[str]
) -> tuple[dict[str, int], list[str]]:
    """Class indices by scan, and the classes: those of the task, else the values, numbers in their own order.

    Args:
        cells: by scan, its cells by column.
        task: which column, and its classes.
        where: the data set, for messages.
        mistakes: keeps what is not among the task's classes.
        notes: takes that '1' and '1.0' were read as one class.

    Raises:
        UserError: there are fewer than two classes, nobody says whether two spellings are one class, or values are
            measured.
    """
    found = {name: _text(cell) for name, cell in _column(cells, task.label_column, where).items()}
    counts = Counter(found.values())
    if task.classes:
        spelled = _named(found, task.classes, where, mistakes)
        classes = task.classes
    else:
        what = f"{where}: column '{task.label_column}'"
        spelled = one_class_each(counts, what, "scans", notes)
        _check_values(counts, spelled, what)
        classes = sorted(set(spelled.values()), key=_in_order)
    if len(classes) < 2:
        raise UserError(f"{where}: column '{task.label_column}' has {len(classes)} classes; two are needed")
    return {name: classes.index(spelled[text]) for name, text in found.items() if text in spelled}, classes


def value_of_each(cells: Cells, task: ReadsValues, where: str, mistakes: Mistakes) -> dict[str, float]:
    """Numbers by scan.

    Args:
        cells: by scan, its cells by column.
        task: which column.
        where: the data set, for messages.
        mistakes: keeps cells that are no number.

    Raises:
        UserError: the column is not there.
    """
    values = {}
    for name, cell in _column(cells, task.label_column, where).items():
        number = cell if isinstance(cell, float) else number_of(str(cell).strip())
        if number is None or not math.isfinite(number):
            hint = "; write it with a point" if _COMMA.fullmatch(str(cell).strip()) else ""
            mistakes.add(f"{where}: '{cell}' of '{name}' in column '{task.label_column}' is no number{hint}")
        else:
            values[name] = number
    return values


def _named(found: Mapping[str, str], classes: Sequence[str], where: str, mistakes: Mistakes) -> dict[str, str]:
    """The class of each text that is among the task's."""
    spelled: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, text in found.items():
        first.setdefault(text, name)
    counts = Counter(found.values())
    for text, name in first.items():
        if (known := among(text, classes)) is not None:
            spelled[text] = known
        else:
            scans = f"{counts[text]} scans, first '{name}'" if counts[text] > 1 else f"'{name}'"
            mistakes.add(
                f"{where}: class '{text}' is not among task.classes {list(classes)}{near(text, classes)} ({scans})"
            )
    return spelled


def one_class_each(counts: Counter[str], what: str, of: str, notes: list[str]) -> dict[str, str]:
    """The class of each text.

    Args:
        counts: of scans or boxes, by text.
        what: begins the message.
        of: what is counted.
        notes: takes that '1' and '1.0' were read as one class.

    Raises:
        UserError: nobody says whether two spellings are one class; the message has the key to type.
    """
    spelled, doubtful = one_spelling(counts)
    names = sorted(set(spelled.values()), key=_in_order)
    if doubtful:
        group = doubtful[0]
        more = f" (and {len(doubtful) - 1} more such)" if len(doubtful) > 1 else ""
        most = [max(each, key=lambda text: (counts[text], -len(text), text)) for each in doubtful]
        fewer = [name for name in names if name in most or not any(name in each for each in doubtful)]
        spellings = " and ".join(f"'{text}' ({counts[text]} {of})" for text in group)
        raise UserError(
            f"{what} holds {spellings}{more}: task.classes={as_option(fewer)} takes them as one class, "
            f"task.classes={as_option(names)} as several"
        )
    merged = sorted(text for text, name in spelled.items() if text != name)
    notes += [f"'{text}' is taken as the class '{spelled[text]}', the same number." for text in merged]
    return spelled


def _check_values(counts: Counter[str], spelled: Mapping[str, str], what: str) -> None:
    """UserError where the values are measured, or one may stand for what is not known."""
    names = sorted(set(spelled.values()), key=_in_order)
    if {"-1", "0"} <= set(names):
        raise UserError(
            f"{what} holds '-1' beside '0' ({counts['-1']} scans): where it means unknown, leave the cells blank; "
            f"task.classes={as_option(names)} takes it as a class"
        )
    fractions = [name for name in names if (number := number_of(name)) is not None and not number.is_integer()]
    if fractions and len(names) > MOST_SHOWN:
        raise UserError(
            f"{what} holds {len(names)} different values such as {fractions[0]}, which are measured, no classes: "
            "task.name=regression predicts them"
        )


def _column(cells: Cells, column: str, where: str) -> dict[str, str | float]:
    """The cells of `column` that are not blank."""
    columns = sorted({name for each in cells.values() for name in each})
    if column not in columns:
        there = f"there are: {', '.join(columns)}" if columns else "no scan has any"
        raise UserError(f"{where} has no column '{column}' ({there}); set task.label_column")
    found = {name: each[column] for name, each in cells.items() if column in each}
    return {name: cell for name, cell in found.items() if not isinstance(cell, str) or value_of(cell)}


def _text(cell: str | float) -> str:
    if isinstance(cell, str):
        return value_of(cell)
    return f"{cell:.0f}" if float(cell).is_integer() else repr(float(cell))


def _in_order(text: str) -> tuple[bool, float, str]:
    number = number_of(text)
    return number is None, number or 0.0, text
