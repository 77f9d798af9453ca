"""From folders and lists to labelled cases, by the stem of their file names."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import keyed_hash, patient_of, site_key
from scanforge.datasets.readers import find_scans, suffix_of
from scanforge.finetune.config import ClassificationTask, DetectionTask, LabelledData, Task

Box = tuple[float, float, float, float, float, float]  # d0, h0, w0, d1, h1, w1: half-open, in voxels of the file
ID_COLUMNS = ("id", "file", "filename", "image", "name")


@dataclass(frozen=True)
class Case:
    """One labelled scan. Only `key` and `patient`, keyed hashes, ever leave the machine."""

    key: str
    patient: str
    image: Path
    target: Path | int | tuple[Box, ...]  # label map or mask; class index; boxes


@dataclass
class CaseList:
    """What was found: the cases, the classes, and what had to stay out, with the reason."""

    cases: list[Case]
    classes: list[str] | None  # None where they stand in the label maps
    left_out: dict[str, int] = field(default_factory=dict)


def stem_of(path: str | Path) -> str:
    """File name without suffix, and without nnU-Net's `_0000` of the first channel."""
    name = PurePosixPath(path).name
    return name[: len(name) - len(suffix_of(name))].removesuffix("_0000")


def discover(data: LabelledData, task: Task) -> CaseList:
    """The labelled cases under `data.images`; UserError where labels are missing, doubled or of no image."""
    images = _by_stem(data.images, "images")
    targets, classes = _targets(data, task, set(images))
    missing = len(images.keys() - targets.keys())
    unknown = sorted(targets.keys() - images.keys())
    if unknown:
        raise UserError(f"label '{unknown[0]}' in {data.labels} has no image of that name in {data.images}")
    if not targets:
        raise UserError(f"no image in {data.images} has a label in {data.labels}; names must agree up to the suffix")
    key = site_key(data.key_file)
    cases = []
    for stem in sorted(targets):
        root, relative = images[stem]
        patient = keyed_hash(key, "patient", patient_of(relative, data.patient_regex))
        cases.append(Case(keyed_hash(key, "scan", relative), patient, root / relative, targets[stem]))
    return CaseList(cases, classes, {"images without a label": missing} if missing else {})


def _by_stem(folder: Path, what: str) -> dict[str, tuple[Path, str]]:
    if not folder.is_dir():
        raise UserError(f"the folder of {what} '{folder}' does not exist")
    found: dict[str, tuple[Path, str]] = {}
    for root, relative in find_scans([folder]):
        stem = stem_of(relative)
        if stem.endswith("_0001") and stem.removesuffix("_0001") in found:
            raise UserError(f"{relative}: several channels per case (_0000, _0001) are not supported; give one folder")
        if stem in found:
            raise UserError(f"two {what} are called '{stem}': {found[stem][1]} and {relative}")
        found[stem] = (root, relative)
    if not found:
        raise UserError(f"no readable scan (NIfTI, PNG, JPEG) in the folder of {what} '{folder}'")
    return found


Targets = dict[str, Path | int | tuple[Box, ...]]


def _targets(data: LabelledData, task: Task, stems: set[str]) -> tuple[Targets, list[str] | None]:
    if not data.labels.exists():
        raise UserError(f"the labels '{data.labels}' do not exist")
    if isinstance(task, ClassificationTask):
        return _class_of_each(data.labels, task)
    if isinstance(task, DetectionTask):
        if data.labels.is_file():
            return dict(_boxes_of_each(data.labels, task, stems)), ["finding"]
        return dict(_masks(data.labels)), task.classes or ["finding"]
    if data.labels.is_file():
        raise UserError(f"segmentation needs a folder of label maps, not the file {data.labels}")
    return dict(_masks(data.labels)), task.classes


def _masks(folder: Path) -> dict[str, Path]:
    return {stem: root / relative for stem, (root, relative) in _by_stem(folder, "labels").items()}


def _rows(path: Path, id_column: str | None, needed: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """(stem, row) of each line of a CSV file; UserError where a column is missing."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the list {path}: {error}") from error
    id_column = id_column or next((name for name in ID_COLUMNS if name in columns), ID_COLUMNS[0])
    for column in (id_column, *needed):
        if column not in columns:
            raise UserError(f"{path} has no column '{column}'; it has: {', '.join(columns)}")
    return [(_known_stem(row[id_column] or ""), row) for row in rows]


def _known_stem(name: str) -> str:
    # An identifier may hold dots of its own: only the suffix of a scan is cut off.
    return stem_of(name) if suffix_of(name) in {".nii", ".nii.gz", ".png", ".jpg", ".jpeg"} else name.strip()


def _class_of_each(path: Path, task: ClassificationTask) -> tuple[Targets, list[str]]:
    rows = _rows(path, task.id_column, [task.label_column])
    labels = {stem: (row[task.label_column] or "").strip() for stem, row in rows}
    if len(labels) < len(rows):
        doubled = next(stem for i, (stem, _) in enumerate(rows) if stem in {s for s, _ in rows[:i]})
        raise UserError(f"{path} names '{doubled}' twice")
    labels = {stem: label for stem, label in labels.items() if label}
    classes = task.classes or sorted(set(labels.values()))
    strange = sorted(set(labels.values()) - set(classes))
    if strange:
        raise UserError(f"{path}: class '{strange[0]}' is not among task.classes {classes}")
    if len(classes) < 2:
        raise UserError(f"{path}: column '{task.label_column}' has {len(classes)} classes; two are needed")
    return {stem: classes.index(label) for stem, label in labels.items()}, list(classes)


def _boxes_of_each(path: Path, task: DetectionTask, stems: set[str]) -> dict[str, tuple[Box, ...]]:
    """Boxes from columns [z0,] y0, x0, [z1,] y1, x1, one line each; a scan without a box has blanks or no line."""
    boxes: dict[str, list[Box]] = {stem: [] for stem in stems}
    for stem, row in _rows(path, task.id_column, ["x0", "y0", "x1", "y1"]):
        if all(row[name] for name in ("x0", "y0", "x1", "y1")):
            names = ("z0", "y0", "x0", "z1", "y1", "x1")
            blank = {"z0": "0", "z1": "1"}
            try:
                box = tuple(float(row.get(name) or blank.get(name, "")) for name in names)
            except ValueError as error:
                raise UserError(f"{path}: the box of '{stem}' has a coordinate that is no number") from error
            if any(low >= high for low, high in zip(box[:3], box[3:], strict=True)):
                raise UserError(f"{path}: the box of '{stem}' is empty: it ends before it begins")
            boxes.setdefault(stem, []).append(box)  # type: ignore[arg-type]
        else:
            boxes.setdefault(stem, [])
    return {stem: tuple(found) for stem, found in boxes.items()}
