"""nnU-Net's and the Decathlon's `dataset.json`: channels, modalities, names of labels, and which files are cases."""

from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.json_file import load_json
from scanfoundry.datasets.discovery.sources import PlannedSource
from scanfoundry.datasets.labels.label_index import LabelIndex, open_labels
from scanfoundry.datasets.labels.masks import is_dataset
from scanfoundry.datasets.labels.pairing.names import whole_parts_of
from scanfoundry.datasets.labels.pairing.numbered import numbered
from scanfoundry.datasets.readers import suffix_of
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.modality import modality_named
from scanfoundry.finetune.cases.sources import FileScan
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.labels import ReadsColumn, ReadsMasks
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.assemble import Gathered, LabelledItem
from scanfoundry.finetune.formats.folders import Scans, item_of, scans_below
from scanfoundry.finetune.formats.missing import complete


def read_dataset_json(path: Path, root: Path, data: LabelledData, task: Task) -> Gathered:
    """The cases whose masks a dataset.json lists, or that lie in labelsTr and labelsTs beside it.

    Args:
        path: of the dataset.json.
        root: the folder below which the cases lie.
        data: what the user says of the data set.
        task: which labels are looked for.

    Raises:
        UserError: the labels are regions, which are no plain classes, or the content is another.
    """
    if isinstance(task, ReadsColumn):
        raise UserError(f"{path} lists masks, no classes: for {task.name} give data.images and a CSV as data.labels")
    content = load_json(path)
    if not is_dataset(content) or not isinstance(content["labels"], dict):
        raise UserError(
            f"{path} is no dataset.json of nnU-Net or the Decathlon: it needs its channels and 'labels', as in "
            '{"labels": {"background": 0, "liver": 1}}'
        )
    if not (isinstance(task, ReadsMasks) and (task.classes or task.values)):
        _check_labels(path, content["labels"])
    found = _channels(path, content)
    book = open_labels([path], [], False)
    scans = _of_ending(path, scans_below(root, data, book, found), content.get("file_ending"), found)
    cases = _cases(scans, book, len(found.channels))
    _check_unshared(path, cases, book, found)
    if len(found.channels) > 1 and all(parts.keys() == {0} and _is_picture(parts[0]) for parts in cases.values()):
        found.channels, found.modalities = ["image"], [""]  # nnU-Net's colours: one file of three channels
    found.drop("labels without an image", len(_unmatched(book, scans)))
    for reason, count in book.left_out.items():
        found.drop(reason, count)
    items = [_item(name, parts, found.channels, book, task) for name, parts in cases.items()]
    if not items:
        raise UserError(f"{path}: none of its masks has an image in {root}")
    with found.mistakes.each():
        complete(items, found.channels, data.allow_missing, str(path))
    found.items = items
    if not any(item.split == "test" for item in items):
        found.items = [LabelledItem(**{**vars(item), "split": ""}) for item in items]
    return found


def _check_labels(path: Path, labels: dict[str, Any]) -> None:
    for name, value in labels.items():
        if isinstance(value, list) and len(value) > 1:
            raise UserError(f"{path}: '{name}' is a region of several labels; name the plain labels as task.classes")


def _channels(path: Path, content: dict[str, Any]) -> Gathered:
    names = content.get("channel_names") or content.get("modality") or {"0": "image"}
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    numbered = isinstance(names, dict) and {str(number) for number in range(len(names))} == set(names)
    if not numbered or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path}: its channels must be numbered from 0 on, as in {{'0': 'T1', '1': 'T2'}}")
    channels = [names[str(number)] for number in range(len(names))]
    doubled = len(set(channels)) < len(channels)
    unique = [f"{name}_{number}" if doubled else name for number, name in enumerate(channels)]
    return Gathered([], unique, [modality_named(name) for name in channels])


def _check_unshared(path: Path, cases: dict[str, dict[int, PlannedSource]], book: LabelIndex, found: Gathered) -> None:
    """Keeps the mistake that a mask is of two cases, which then are scans of one name in two folders."""
    owners: dict[Path, str] = {}
    for name in cases:
        with found.mistakes.each():
            ref = book.of(name)
            if ref is not None and ref.mask is not None and (other := owners.setdefault(ref.mask, name)) != name:
                raise UserError(f"{path}: '{other}' and '{name}' would both have the mask {ref.mask}: take one out")


def _of_ending(path: Path, scans: Scans, ending: Any, found: Gathered) -> Scans:
    """Those of `file_ending`, in whatever case; UserError where it is of none of them."""
    if ending is None:
        return scans
    wanted = f".{str(ending).strip().lower().lstrip('.')}"
    fitting = {relative: scan for relative, scan in scans.items() if relative.lower().endswith(wanted)}
    if not fitting:
        there = sorted({suffix_of(relative) for relative in scans})
        raise UserError(f"{path}: no scan has its file_ending '{ending}'; there are: {', '.join(there)}")
    found.drop(f"scans that do not end with file_ending '{ending}'", len(scans) - len(fitting))
    return fitting


def _cases(scans: Scans, book: LabelIndex, channels: int) -> dict[str, dict[int, PlannedSource]]:
    """Files by case and channel, of those with a mask; -1: all channels in one file of several volumes."""
    cases: dict[str, dict[int, PlannedSource]] = {}
    for relative, scan in scans.items():
        *folders, stem = whole_parts_of(relative)
        name = "/".join((*folders, stem))
        found = numbered(stem)
        case = "/".join((*folders, found[0])) if found else ""
        # The book knows the mask of x by x_0001, too; amos_0001 is a case of its own where none is called amos.
        own = book.names_case(name) and not (found and 0 < found[1] < channels)
        if found and not own and book.names_case(case):
            if found[1] >= channels:
                raise UserError(f"{relative} is channel {found[1]}, but dataset.json names {channels}")
            cases.setdefault(case, {})[found[1]] = scan
        elif book.of(name) is not None:
            cases.setdefault(name, {})[0 if channels == 1 else -1] = scan
    return cases


def _is_picture(scan: PlannedSource) -> bool:
    return scan.source.kind in ("image", "tiff")


def _item(
    name: str, parts: dict[int, PlannedSource], channels: list[str], book: LabelIndex, task: Task
) -> LabelledItem:
    whole = parts.get(-1)
    planned = [whole or parts.get(number) for number in range(len(channels))]
    volumes: tuple[ScanSource | None, ...] | None = None
    if whole is not None:
        volumes = tuple(FileScan(whole.source, number) for number in range(len(channels)))
    item = item_of(name, planned, book, task, [], volumes, label=name)
    return LabelledItem(**{**vars(item), "split": "test" if "imagesTs" in name.split("/") else "train"})


def _unmatched(book: LabelIndex, scans: Scans) -> list[str]:
    # The book also files the mask of x under x_0001, ...: those are no labels of their own.
    names = [(name, numbered(name)) for name in book.unused(list(scans))]
    return [name for name, found in names if not (found and found[1] and book.names_case(found[0]))]
