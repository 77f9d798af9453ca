"""Classes and numbers out of the cells of a list."""

import math
from collections.abc import Mapping

from scanforge.configs.checking import near
from scanforge.configs.errors import UserError
from scanforge.datasets.labels.columns import value_of
from scanforge.finetune.config import ClassificationTask, RegressionTask

Cells = Mapping[str, Mapping[str, str | float]]  # name of the scan: column: cell


def class_of_each(cells: Cells, task: ClassificationTask, where: str) -> tuple[dict[str, int], list[str]]:
    """Class indices by scan, and the classes: those of the task, else the values, numbers in their own order.

    UserError where there are fewer than two classes, or one that the task does not name.
    """
    found = {name: _text(cell) for name, cell in _column(cells, task.label_column, where).items()}
    known = set(found.values())
    classes = list(task.classes or sorted(known, key=_in_order))
    strange = sorted(known - set(classes))
    if strange:
        hint = near(strange[0], classes)
        raise UserError(f"{where}: class '{strange[0]}' is not among task.classes {classes}{hint}")
    if len(classes) < 2:
        raise UserError(f"{where}: column '{task.label_column}' has {len(classes)} classes; two are needed")
    return {name: classes.index(text) for name, text in found.items()}, classes


def value_of_each(cells: Cells, task: RegressionTask, where: str) -> dict[str, float]:
    """Numbers by scan; UserError where a cell is none."""
    values = {}
    for name, cell in _column(cells, task.label_column, where).items():
        try:
            values[name] = float(cell)
        except ValueError:
            values[name] = math.nan
        if not math.isfinite(values[name]):
            raise UserError(f"{where}: '{cell}' of '{name}' in column '{task.label_column}' is no number")
    return values


def _column(cells: Cells, column: str, where: str) -> dict[str, str | float]:
    """The cells of `column` that are not blank."""
    columns = sorted({name for each in cells.values() for name in each})
    if column not in columns:
        there = f"there are: {', '.join(columns)}" if columns else "no scan has any"
        raise UserError(f"{where} has no column '{column}' ({there}); set task.label_column")
    found = {name: each[column] for name, each in cells.items() if column in each}
    return {name: cell for name, cell in found.items() if not isinstance(cell, str) or value_of(cell)}


def _text(cell: str | float) -> str:
    return value_of(cell) if isinstance(cell, str) else f"{cell:g}"


def _in_order(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
