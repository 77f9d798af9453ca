"""What stands in a list of cases: the lines of a CSV, or the entries of a JSON list, MONAI's among them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.configs.json_file import load_json
from scanfoundry.datasets.labels.drawn import is_coco
from scanfoundry.datasets.labels.tables.columns import value_of
from scanfoundry.datasets.labels.tables.rows import read_rows
from scanfoundry.datasets.readers import SUFFIXES, suffix_of

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
EXAMPLE = '[{"image": "a.nii.gz", "label": "b.nii.gz"}, ...]'


@dataclass(frozen=True)
class Entry:
    """One entry of a list.

    Attributes:
        cells: by column; of a JSON list anything that it can hold.
        where: it stands, for messages.
    """

    cells: Mapping[str, Any]
    where: str


@dataclass
class Entries:
    """The entries of a list.

    Attributes:
        columns: their names.
        entries: in the order of the file.
        about: what else a JSON list says ('labels', 'modality' of MONAI's).
    """

    columns: list[str]
    entries: list[Entry]
    about: dict[str, Any] = field(default_factory=dict)


def read_entries(path: Path, mistakes: Mistakes) -> Entries:
    """The entries of a list.

    Args:
        path: of a CSV or JSON file.
        mistakes: keeps what is no entry.

    Raises:
        UserError: it is no list, or an empty one.
    """
    if path.suffix.lower() != ".json":
        columns, rows = read_rows(path)
        found = Entries(columns, [Entry(row, f"line {row.line}") for row in rows])
    else:
        found = _of_json(path, load_json(path), mistakes)
    if not found.entries:
        mistakes.raise_if_any()
        raise UserError(f"{path} lists no case")
    return found


def is_case_list(content: Any) -> bool:
    """Whether a JSON file's content is a list of cases: one list, or one for each side."""
    return _lists_cases(content) or (isinstance(content, dict) and any(map(_lists_cases, content.values())))


def text_of(cell: Any, what: str) -> str:
    """A cell as text, '' where nothing is known.

    Raises:
        UserError: it is no single value; the message names `what`.
    """
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, list | dict):
        raise UserError(f"{what} is {_kind(cell)}: one value is needed")
    if isinstance(cell, float) and cell.is_integer():
        return f"{cell:.0f}"
    text = "" if cell is None else value_of(str(cell))
    if "\n" in text or "\r" in text:
        raise UserError(f"{what} goes over several lines: is a quote not closed?")
    return text


def paths_of(cell: Any, what: str) -> list[str]:
    """The paths in a cell, of several channels as a list: '' for one that is missing.

    Raises:
        UserError: it holds no paths; the message names `what`.
    """
    cell = _unnested(cell)
    each = cell if isinstance(cell, list) else [cell]
    each = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in each]
    wrong = next((one for one in each if one is not None and not isinstance(one, str)), None)
    if wrong is not None:
        raise UserError(f"{what} is {_kind(wrong)}: a path is needed, or a list of one for each channel")
    return [text_of(one, what) for one in each]


def _of_json(path: Path, content: Any, mistakes: Mistakes) -> Entries:
    sides: list[tuple[str, str, Any]] = []  # the side, what it is called, what it holds
    about: dict[str, Any] = {}
    if is_coco(content):
        raise UserError(f"{path} is COCO's list of boxes: give data.images=FOLDER data.labels={path}")
    if isinstance(content, dict):
        for key, value in content.items():
            side = SPLITS.get(key.strip().lower())
            if side is not None:
                sides.append((side, key, value))
            elif _lists_cases(value):
                mistakes.add(f"{path}: '{key}' is none of training, validation and test, but lists cases: rename it")
            else:
                about[key] = value
        if content and not sides and not len(mistakes):
            raise UserError(f"{path} is no list of cases, such as {EXAMPLE}, nor of 'training' and 'test' with such")
    else:
        sides.append(("", "", content))
    entries, channels = [], _channel_counts(content)
    for side, key, listed in sides:
        if not isinstance(listed, list | None):
            which = f"'{key}'" if key else "it"
            raise UserError(f"{path} is no list of cases, such as {EXAMPLE}: {which} is {_kind(listed)}")
        for number, each in enumerate(listed or [], start=1):
            where = f"entry {number} of '{key}'" if key else f"entry {number}"
            # A list of as many files as the other entries have channels can be nothing but these.
            if isinstance(each, str) or (isinstance(each, list) and len(each) > 1 and channels == {len(each)}):
                each = {"image": each}
            if not isinstance(each, dict):
                mistakes.add(f"{path} is no list of cases, such as {EXAMPLE}: {where} is {_kind(each)}")
                continue
            cells = {name.strip(): cell for name, cell in each.items()}
            entries.append(Entry({"split": side, **cells} if side else cells, where))
    return Entries(sorted({name for each in entries for name in each.cells}), entries, about)


def _channel_counts(content: Any) -> set[int]:
    """How many files the entries name as their image."""
    lists = content.values() if isinstance(content, dict) else [content]
    entries = [each for listed in lists if isinstance(listed, list) for each in listed if isinstance(each, dict)]
    cells = [_unnested(each.get("image")) for each in entries]
    return {len(cell) if isinstance(cell, list) else 1 for cell in cells}


def _unnested(cell: Any) -> Any:
    return cell[0] if isinstance(cell, list) and len(cell) == 1 and isinstance(cell[0], list) else cell


def _lists_cases(value: Any) -> bool:
    return isinstance(value, list) and _names_a_scan(value, 3)


def _names_a_scan(value: Any, depth: int) -> bool:
    if isinstance(value, str):
        return suffix_of(value.strip()) in SUFFIXES
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and any(_names_a_scan(each, depth - 1) for each in inner)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "a mapping" if isinstance(value, dict) else repr(value)[:40]
