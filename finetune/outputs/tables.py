"""What was predicted of all scans together, as one table."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scanforge.configs.files import write_json, write_whole
from scanforge.configs.text import printable
from scanforge.datasets.readers import Scan
from scanforge.finetune.outputs.boxes import CONVENTIONS

Row = dict[str, Any]
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")  # also of full width, which some take for the same


def write_csv(target: Path, rows: Sequence[Row]) -> None:
    """One line for each scan; all rows have the keys of the first. Texts are `cell`s."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(map(cell, rows[0]))
            writer.writerows([cell(row[name]) for name in rows[0]] for row in rows)

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


def write_boxes(target: Path, rows: Sequence[Row]) -> None:
    """JSON: what the numbers mean, then the scans."""
    write_json(target, {"conventions": CONVENTIONS, "scans": list(rows)})


def volumes_of(labels: npt.NDArray[np.uint8], scan: Scan, classes: Sequence[str]) -> Row:
    """Voxels of each class, and millilitres where the scan lies in the world."""
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)[1:]
    row: Row = {}
    for name, count in zip(classes, counts, strict=True):
        row[f"{name} voxels"] = int(count)
        row[f"{name} ml"] = "" if scan.affine is None else round(float(count * np.prod(scan.spacing)) / 1000, 4)
    return row
