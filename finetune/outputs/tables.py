"""What was predicted of all scans together, as one table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scanforge.configs.files import write_json, write_whole
from scanforge.datasets.readers import Scan
from scanforge.finetune.outputs.boxes import CONVENTIONS
from scanforge.finetune.volumes import voxel_mm3

Row = dict[str, Any]


def write_csv(target: Path, rows: Sequence[Row]) -> None:
    """One line for each scan; all rows have the keys of the first."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_whole(target, write)


def write_boxes(target: Path, rows: Sequence[Row]) -> None:
    """JSON: what the numbers mean, then the scans."""
    write_json(target, {"conventions": CONVENTIONS, "scans": list(rows)})


def volumes_of(labels: npt.NDArray[np.uint8], scan: Scan, classes: Sequence[str]) -> Row:
    """Voxels of each class, and millilitres, of six digits, where the scan lies in the world."""
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)[1:]
    row: Row = {}
    for name, count in zip(classes, counts, strict=True):
        row[f"{name} voxels"] = int(count)
        row[f"{name} ml"] = "" if scan.affine is None else float(f"{count * voxel_mm3(scan) / 1000:.6g}")
    return row
