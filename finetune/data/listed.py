"""A list of cases, CSV or JSON: columns of paths relative to it, of classes, values, patients and the split."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import keyed_hash, patient_of, site_key
from scanforge.datasets.labels.columns import value_of
from scanforge.datasets.labels.table import read_rows
from scanforge.datasets.study import shared_studies, studies_of
from scanforge.finetune.config import ClassificationTask, LabelledData, RegressionTask, Task
from scanforge.finetune.data.assemble import Gathered, Item
from scanforge.finetune.data.cases import ScanSource
from scanforge.finetune.data.dataset_json import load_json
from scanforge.finetune.data.missing import complete
from scanforge.finetune.data.sources import scan_file

IMAGE_COLUMNS = ("image", "file", "filename", "path")  # the first that is there; else all 'image_...'
MASK_COLUMNS = ("label", "mask", "segmentation", "seg")
PATIENT_COLUMNS = ("patient", "patient_id", "subject", "subject_id")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
Row = Mapping[str, Any]


def read_list(path: Path, data: LabelledData, task: Task) -> Gathered:
    """One case per line; UserError, naming the line's case, for a file that is not there or a case named twice."""
    columns, rows = _rows(path)
    images = _image_columns(path, columns, data)
    single = isinstance(rows[0].get(images["image"]), list) if images.keys() == {"image"} else False
    channels = list(images)
    if single:
        channels = [f"channel_{n}" for n in range(max(len(_cell_list(row, images["image"])) for row in rows))]
    found = Gathered([], channels, [""] * len(channels))
    wanted = _label_columns(path, columns, task)
    patient = next((name for name in PATIENT_COLUMNS if name in columns), None)
    paths = [_paths(row, images, single, len(channels)) for row in rows]
    studies = shared_studies(studies_of({p for each in paths for p in each if p is not None}))
    items = []
    for number, (row, each) in enumerate(zip(rows, paths, strict=True), start=1):
        if not any(each):
            raise UserError(f"{path}: case {number} names no image")
        items.append(_item(path, row, each, wanted, patient, studies, data, task))
    found.items = complete(items, channels, data.allow_missing, str(path))
    return found


def _rows(path: Path) -> tuple[list[str], Sequence[Row]]:
    rows: Sequence[Row]
    if path.suffix.lower() == ".json":
        content = load_json(path)
        if isinstance(content, dict):  # MONAI's: one list for each side
            content = [{"split": side, **row} for side in content if side in SPLITS for row in content[side]]
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise UserError(f'{path} is no list of cases, such as [{{"image": "a.nii.gz", "label": "b.nii.gz"}}, ...]')
        columns, rows = sorted({str(name) for row in content for name in row}), content
    else:
        columns, rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} lists no case")
    return columns, rows


def _image_columns(path: Path, columns: Sequence[str], data: LabelledData) -> dict[str, str]:
    """Column by channel."""
    if data.channels is not None:
        absent = [column for column in data.channels.values() if column not in columns]
        if absent:
            raise UserError(f"{path} has no column '{absent[0]}' (data.channels); it has: {', '.join(columns)}")
        return data.channels
    one = next((name for name in IMAGE_COLUMNS if name in columns), None)
    several = {column.removeprefix("image_"): column for column in columns if column.startswith("image_")}
    if one is None and not several:
        raise UserError(f"{path} has no column 'image' of paths; it has: {', '.join(columns)}; see data.channels")
    return {"image": one} if one is not None else several


def _label_columns(path: Path, columns: Sequence[str], task: Task) -> tuple[str, ...]:
    if isinstance(task, ClassificationTask | RegressionTask):
        wanted: Sequence[str] = (task.label_column,)
    else:
        wanted = MASK_COLUMNS
    found = tuple(name for name in wanted if name in columns)[:1]
    if not found:
        raise UserError(f"{path} has no column '{wanted[0]}'; it has: {', '.join(columns)}")
    return found


def _cell_list(row: Row, column: str) -> list[str]:
    cell = row.get(column) or []
    return [str(each) for each in cell] if isinstance(cell, list) else [str(cell)]


def _paths(row: Row, images: Mapping[str, str], single: bool, count: int) -> list[str | None]:
    if single:
        cells: list[str] = _cell_list(row, images["image"])
        cells += [""] * (count - len(cells))
    else:
        cells = [value_of(str(row.get(column) or "")) for column in images.values()]
    return [cell.replace("\\", "/").removeprefix("./") or None for cell in cells]


def _item(
    path: Path,
    row: Row,
    images: Sequence[str | None],
    wanted: tuple[str, ...],
    patient: str | None,
    studies: Mapping[str, str],
    data: LabelledData,
    task: Task,
) -> Item:
    first = next(each for each in images if each is not None)
    relative = _below(path.parent, first)
    key = site_key(data.key_file)
    named = value_of(str(row.get(patient) or "")) if patient else ""
    whose = named or patient_of(relative, data.patient_regex, studies.get(first))
    sources: tuple[ScanSource | None, ...] = tuple(None if e is None else scan_file(path.parent / e) for e in images)
    cell = row.get(wanted[0])
    classes = isinstance(task, ClassificationTask | RegressionTask)
    text = "" if cell is None else str(cell).strip()
    return Item(
        first,
        keyed_hash(key, "scan", relative),
        keyed_hash(key, "patient", whose),
        sources,
        mask=scan_file(path.parent / text) if text and not classes else None,
        values={wanted[0]: text} if classes else {},
        split=SPLITS.get(str(row.get("split") or "").strip().lower(), ""),
    )


def _below(folder: Path, name: str) -> str:
    """The path as a build of `folder` knows it."""
    if not PurePosixPath(name).is_absolute():
        return name
    return Path(os.path.relpath(name, folder.absolute())).as_posix()
