"""A list of cases, CSV or JSON: columns of paths, of classes, values, patients and the split."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.datasets.identity import keyed_hash, patient_of, site_key
from scanfoundry.datasets.labels.pairing.study import shared_studies, studies_of
from scanfoundry.datasets.labels.tables.rows import column_named
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.sources import scan_file
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.labels import ReadsColumn
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.assemble import Gathered, LabelledItem
from scanfoundry.finetune.formats.entries import SPLITS, Entries, Entry, paths_of, read_entries, text_of
from scanfoundry.finetune.formats.list_columns import image_columns, label_column, patient_column
from scanfoundry.finetune.formats.list_facts import about_labels, about_modalities, check_patients_once, notes_on
from scanfoundry.finetune.formats.missing import complete


@dataclass(frozen=True)
class _List:
    """What is the same for all entries. images: column by channel; root: the folder that paths are relative to."""

    path: Path
    root: Path
    images: Mapping[str, str]
    label: str
    patient: str | None
    split: str | None
    data: LabelledData
    task: Task

    @property
    def asked(self) -> str:
        """The column of classes or values as the task calls it; '' where it wants masks."""
        return self.task.label_column if isinstance(self.task, ReadsColumn) else ""


def read_list(path: Path, data: LabelledData, task: Task, root: Path) -> Gathered:
    """One case per line or entry.

    Kept in `mistakes`, with where it stands: a file that is not there, a case named twice, a cell that is no path.

    Args:
        path: of the list.
        data: what the user says of the data set.
        task: which labels are looked for.
        root: the folder that paths in the list are relative to.

    Raises:
        UserError: it is no list, or its columns are not there.
    """
    mistakes = Mistakes(str(path))
    found = read_entries(path, mistakes)
    images = image_columns(path, found.columns, data)
    label = label_column(path, found, task)
    listed = _List(
        path, root, images, label, patient_column(found.columns), column_named(found.columns, "split"), data, task
    )
    files = [_files(listed, number, entry, mistakes) for number, entry in enumerate(found.entries, start=1)]
    channels = list(images)
    if images.keys() == {"image"} and any(
        isinstance(entry.cells.get(images["image"]), list) for entry in found.entries
    ):
        channels = [f"channel_{n}" for n in range(max(len(each) for each in files))]
    files = [each + [None] * (len(channels) - len(each)) for each in files]
    gathered = Gathered([], channels, about_modalities(found, channels), mistakes=mistakes)
    gathered.notes += notes_on(found, listed.split, listed.patient)
    check_patients_once(path, found, listed.patient, mistakes)
    with mistakes.instead():
        _check_same_root(listed, files)
        gathered.items = _items(listed, found, files, mistakes)
    with mistakes.each():
        gathered.items = complete(gathered.items, channels, data.allow_missing, str(path))
    return gathered


def _files(listed: _List, number: int, entry: Entry, mistakes: Mistakes) -> list[str | None]:
    """Paths of the channels, '/' between their parts; none where the entry cannot be read."""
    try:
        cells = [
            paths_of(entry.cells.get(column), f"{listed.path}: {entry.where}: '{column}'")
            for column in listed.images.values()
        ]
        if len(cells) > 1 and any(len(each) > 1 for each in cells):
            raise UserError(f"{listed.path}: {entry.where}: one path is needed in each column of a channel")
    except UserError as error:
        mistakes.add(error)
        return []
    names = [posixpath.normpath(path.replace("\\", "/")) if path else None for each in cells for path in each]
    if not any(names):
        mistakes.add(f"{listed.path}: case {number} names no image ({entry.where})")
        return []
    return names


def _check_same_root(listed: _List, files: Sequence[Sequence[str | None]]) -> None:
    """UserError where none of several images is there: paths are then relative to another folder."""
    first = [next((name for name in each if name), None) for each in files]
    named = [name for name in first if name]
    if len(named) > 1 and not any(os.path.exists(listed.root / name) for name in named):
        raise UserError(
            f"{listed.path}: none of its {len(named)} images exists, such as {named[0]}: paths are relative to "
            f"'{listed.root}'; where they are to another folder, give data.images=FOLDER data.labels={listed.path} "
            "data.format=list"
        )


def _items(listed: _List, found: Entries, files: Sequence[list[str | None]], mistakes: Mistakes) -> list[LabelledItem]:
    studies = shared_studies(studies_of({p for each in files for p in each if p is not None}))
    names, key = about_labels(found, listed.path), site_key(listed.data.key_file)
    items: list[LabelledItem] = []
    seen: dict[str, Entry] = {}
    for entry, each in zip(found.entries, files, strict=True):
        first = next((name for name in each if name), None)
        if first is None:
            continue
        relative = _below(listed.root, first)
        before = seen.setdefault(relative, entry)
        if before is not entry:
            mistakes.add(f"{listed.path} names '{first}' twice ({before.where} and {entry.where})")
            continue
        with mistakes.each():
            items.append(_item(listed, entry, each, first, relative, studies, key, names))
    return items


def _item(
    listed: _List,
    entry: Entry,
    images: Sequence[str | None],
    first: str,
    relative: str,
    studies: Mapping[str, str],
    key: bytes,
    names: dict[int, str],
) -> LabelledItem:
    where, cells = f"{listed.path}: {entry.where}", entry.cells
    named = text_of(cells.get(listed.patient), f"{where}: '{listed.patient}'") if listed.patient else ""
    whose = named or patient_of(relative, listed.data.patient_regex, studies.get(first))
    missing = Mistakes(where)
    sources: list[ScanSource | None] = [None if e is None else _there(listed, e, where, missing) for e in images]
    mask, text = None, ""
    what = f"{where}: '{listed.label}'"
    if not listed.asked:
        masks = [name for name in paths_of(cells.get(listed.label), what) if name]
        if len(masks) > 1:
            missing.add(f"{what} names {len(masks)} masks: unite them into one label map")
        elif masks:
            mask = _there(listed, masks[0].replace("\\", "/"), where, missing)
    else:
        with missing.each():
            text = text_of(cells.get(listed.label), what)
    missing.raise_if_any()
    side = text_of(cells.get(listed.split), f"{where}: split") if listed.split else ""
    return LabelledItem(
        first,
        keyed_hash(key, "scan", relative),
        keyed_hash(key, "patient", whose),
        tuple(sources),
        mask=mask,
        names=names if mask is not None else {},
        values={listed.asked: text} if listed.asked else {},
        split=SPLITS.get(side.lower(), ""),
    )


def _there(listed: _List, name: str, where: str, missing: Mistakes) -> ScanSource | None:
    try:
        return scan_file(listed.root / name)
    except UserError as error:
        missing.add(f"{where}: {error}")
        return None


def _below(folder: Path, name: str) -> str:
    """The path as a build of `folder` knows it."""
    if not PurePosixPath(name).is_absolute():
        return name
    return Path(os.path.relpath(name, folder.absolute())).as_posix()
