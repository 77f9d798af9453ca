"""What kind of data set lies there, and its cases."""

import zipfile
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.json_file import load_json
from scanfoundry.datasets.labels.drawn import is_coco
from scanfoundry.datasets.labels.masks import as_names, is_dataset
from scanfoundry.datasets.readers.paths import split_pattern
from scanfoundry.datasets.shards.format import MANIFEST
from scanfoundry.datasets.storage.address import is_url
from scanfoundry.finetune.cases.cases import CaseList
from scanfoundry.finetune.config.study import Format, LabelledData
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.archive import read_archive
from scanfoundry.finetune.formats.assemble import Gathered, assemble
from scanfoundry.finetune.formats.dataset_json import read_dataset_json
from scanfoundry.finetune.formats.entries import is_case_list
from scanfoundry.finetune.formats.folders import read_folders
from scanfoundry.finetune.formats.listed import read_list
from scanfoundry.finetune.formats.patterns import read_pattern, read_patterns
from scanfoundry.finetune.formats.shards import read_shards

DATASET = "dataset.json"
_IMAGES = ("images", "JPEGImages")
_READ = (
    "dataset.json (nnU-Net, Decathlon), a list of cases (.csv, .json), MedMNIST (.npz), shards (manifest.json), "
    "images/ beside labels/, or data.images with data.labels, or data.channels"
)


def discover(data: LabelledData, task: Task) -> CaseList:
    """The labelled cases of `data` for `task`.

    Raises:
        UserError: it is no data set that is read, labels are missing, doubled or of no image, or do not suit the task;
            one line, or where several cases are wrong a line for each.
    """
    found = known_cases(data, task)
    found.mistakes.raise_if_any()
    return found


def known_cases(data: LabelledData, task: Task) -> CaseList:
    """As `discover`, but what is wrong with single cases is left in the list's `mistakes`.

    They are raised together with what reading the scans brings to light.

    Raises:
        UserError: what is wrong is more than single cases.
    """
    kind = kind_of(data, task)
    where = Path(data.where)
    found = read_shards(data.where, data) if kind == "shards" else _gathered(kind, where, data, task)
    # Of labels in a file of their own, that is what messages are about.
    apart = kind in ("folders", "list") and len(data.label_paths) == 1
    found.mistakes.where = data.where if kind == "shards" else str(data.label_paths[0] if apart else where)
    with found.mistakes.instead():
        return assemble(found, data, task, found.mistakes.where)


def kind_of(data: LabelledData, task: Task) -> Format:
    """`data.format`, or what lies there.

    Raises:
        UserError: that is nothing known.
    """
    if not data.where:
        raise UserError("no data: give data.path (a whole data set), or data.images with data.labels")
    where = Path(data.where)
    if is_url(data.where):
        return "shards"
    if _has_pattern(data):
        return "channels"
    if not where.exists():
        raise UserError(f"the data set '{where}' does not exist")
    if data.format != "auto":
        return data.format
    if (where / MANIFEST).is_file():
        return "shards"
    if where.suffix.lower() == ".npz" and _has_stacks(where):
        return "archive"
    if where.suffix.lower() == ".npz" and not data.labels:
        raise UserError(
            f"{where} holds no stack of images: 'images' and 'labels', or 'train_images', 'train_labels', ..."
        )
    if _dataset_json(where, data) is not None:
        return "dataset"
    if where.is_file() and where.suffix.lower() in (".csv", ".tsv", ".json"):
        return "list"
    if _list_of_images(data) is not None:
        return "list"
    if data.channels is not None:
        return "channels"
    if data.labels or _parts_of(where, task) is not None:
        return "folders"
    raise UserError(f"'{where}' is no data set that is read: {_READ}")


def _gathered(kind: Format, where: Path, data: LabelledData, task: Task) -> Gathered:
    if kind == "archive":
        return read_archive(where, data, task)
    if kind == "list":
        return read_list(_list_of_images(data) or where, data, task, where if where.is_dir() else where.parent)
    if kind == "channels":
        if data.channels is None and data.images is not None and _has_pattern(data):
            return read_pattern(data.images, data, task)
        if data.channels is None:
            raise UserError("data.format=channels needs data.channels: {t1: '*/t1.nii.gz', ...}")
        return read_patterns(where, data.channels, data, task)
    if data.channels is not None:
        raise UserError("data.channels is of data sets without dataset.json: leave it out")
    if kind == "dataset":
        description = _dataset_json(where, data)
        if description is None:
            raise UserError(f"there is no {DATASET} in '{where}'")
        return read_dataset_json(description, where if where.is_dir() else where.parent, data, task)
    parts = _parts_of(where, task) if not data.labels else None
    if parts is None:
        return read_folders(where, data, task)
    return read_folders(parts[0], data.model_copy(update={"labels": parts[1]}), task)


def _list_of_images(data: LabelledData) -> Path | None:
    """The list of cases that is given as the labels of a folder: its paths are relative to the folder."""
    given = data.label_paths
    if data.images is None or len(given) != 1 or not given[0].is_file():
        return None
    if data.format == "list" or given[0].suffix.lower() != ".json":
        return given[0] if data.format == "list" else None
    content = load_json(given[0], "the labels ")
    known = is_coco(content) or is_dataset(content) or as_names(content) is not None
    return given[0] if not known and is_case_list(content) else None


def _has_pattern(data: LabelledData) -> bool:
    """Whether data.images or its labels are patterns ('img_*.png')."""
    return data.images is not None and any(split_pattern(path) for path in (data.images, *data.label_paths))


def _dataset_json(where: Path, data: LabelledData) -> Path | None:
    """The dataset.json that is given, or lies there where no other labels are given."""
    if given := [path for path in data.label_paths if path.name == DATASET]:
        return given[0]
    if data.labels:
        return None
    if where.name == DATASET:
        return where
    return where / DATASET if (where / DATASET).is_file() else None


def _parts_of(where: Path, task: Task) -> tuple[Path, Path] | None:
    """Images and labels for the task in a folder that holds both under their usual names."""
    images = next((where / name for name in _IMAGES if (where / name).is_dir()), None)
    labels = next((where / name for name in task.label_files if (where / name).exists()), None)
    return (images, labels) if images is not None and labels is not None else None


def _has_stacks(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("images.npy") for name in archive.namelist())
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
