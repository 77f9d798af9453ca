"""Which columns of a list are stored with the scans, and what of them. A note says what becomes of each column."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.tables.ages import are_ages, capped_text, is_age, oldest_of
from scanfoundry.datasets.labels.tables.columns import INSIST, agreed, kind_of, why_not

_SHOWN = 3  # values of a column that is taken
_DIFFERS = "differs between the lines of one scan (the boxes' classes go into a column 'label')"
Cells = Sequence[str] | None  # of each scan; None: they differ between the lines of one scan


@dataclass(frozen=True)
class StoredColumn:
    """A column that is stored.

    Attributes:
        kind: 'class' or 'target' (a number).
        oldest: of a column of ages, 90 years in its unit.
    """

    kind: str
    oldest: float | None = None

    def stored(self, cell: str) -> str | float:
        """A known cell as it is stored: a class, or a number; an age of 90 years and more as 90."""
        if self.kind == "class":
            return cell if self.oldest is None else capped_text(cell)
        return float(cell) if self.oldest is None else min(float(cell), self.oldest)


def chosen(
    path: Path, columns: Mapping[str, Cells], asked: Iterable[str], insist: bool
) -> tuple[dict[str, StoredColumn], list[str]]:
    """Decide which columns of a list are stored.

    A column is stored where it was asked for or is called as labels are, and identifies no person.

    Args:
        path: of the list, for messages.
        columns: the cells of each column, as of `value_of`; None where they differ between the lines of one scan.
        asked: columns that were asked for.
        insist: store these even where they may identify a person.

    Returns:
        The columns that are stored, and notes on what is stored and what is left out.

    Raises:
        UserError: a column that was asked for cannot be stored.
    """
    taken: dict[str, StoredColumn] = {}
    notes: list[str] = []
    left: list[str] = []
    wanted = set(asked)
    for column, cells in columns.items():
        if column not in wanted and not agreed(column):
            left.append(column.strip())
            continue
        kind, why, hint = _judged(column, cells, insist and column in wanted)
        if not why:
            taken[column] = StoredColumn(kind, _oldest(column, kind, cells or ()))
            notes.append(f"{path.name}: column '{column.strip()}' taken as {_summary(taken[column], cells or ())}")
        elif column in wanted:
            raise UserError(f"{path}: column '{column.strip()}' of --label-columns {why}{hint}")
        else:
            notes.append(f"{path.name}: column '{column.strip()}' left out: {why}")
    if left:
        names = ", ".join(f"'{name}'" for name in left)
        notes.append(f"{path.name}: left out, since nobody asked for them with --label-columns: {names}")
    return taken, notes


def named(path: Path, columns: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The columns of a list that were asked for: by name, else by name but for case and margin.

    Raises:
        UserError: two columns fit.
    """
    found: list[str] = []
    for wanted in asked:
        fitting = [wanted] if wanted in columns else [c for c in columns if c.strip().lower() == wanted.strip().lower()]
        if len(fitting) > 1:
            raise UserError(f"{path}: --label-columns {wanted}: give it as '{fitting[0]}' or '{fitting[1]}'")
        found += fitting
    return found


def _judged(column: str, cells: Cells, insist: bool) -> tuple[str, str, str]:
    """(kind, why it is not taken, how to have it all the same)."""
    if cells is None:
        return "", _DIFFERS, ""
    kind = kind_of(column, cells)
    if not kind:
        return "", "is empty", ""
    why = "" if insist else why_not(column, cells, kind)
    return kind, why, f"; {INSIST}" if why else ""


def _oldest(column: str, kind: str, cells: Sequence[str]) -> float | None:
    if not is_age(column) and not (kind == "class" and are_ages([cell for cell in cells if cell])):
        return None
    return oldest_of(column, max(float(cell) for cell in cells if cell)) if kind == "target" else 0.0


def _summary(taken: StoredColumn, cells: Sequence[str]) -> str:
    known = [cell for cell in cells if cell]
    stored = [taken.stored(cell) for cell in known]
    capped = sum(
        value != (cell if taken.kind == "class" else float(cell)) for value, cell in zip(stored, known, strict=True)
    )
    often = [f"{value:g}" if isinstance(value, float) else value for value, _ in Counter(stored).most_common()]
    shown = often if taken.kind == "class" else [f"{value:g}" for value in sorted(set(stored))]
    shown = shown if len(shown) <= _SHOWN else [shown[0], shown[len(shown) // 2], shown[-1]]
    what = "classes" if taken.kind == "class" else "numbers"
    count = len(set(stored))
    note = f"; {capped} ages above 89 are stored as 90" if capped else ""
    return f"{what}: {count} value{'s' if count > 1 else ''} in {len(known)} rows ({', '.join(shown)}){note}"
