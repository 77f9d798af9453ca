"""A folder of scans, and labels that go by their names; nnU-Net's `_0000`, `_0001`, ... are channels of one case."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scanforge.configs.errors import Mistakes, UserError
from scanforge.datasets.identity import site_key
from scanforge.datasets.labels.book import LabelBook, open_labels
from scanforge.datasets.labels.names import parts_of
from scanforge.datasets.labels.table import Columns
from scanforge.datasets.readers import SUFFIXES, suffix_of
from scanforge.datasets.shards.sources import PlannedSource, find_sources
from scanforge.datasets.shards.survey import find_dicom
from scanforge.finetune.config import ClassificationTask, DetectionTask, LabelledData, RegressionTask, Task
from scanforge.finetune.data.assemble import Gathered, Item, labelled
from scanforge.finetune.data.cases import ScanSource
from scanforge.finetune.data.missing import complete
from scanforge.finetune.data.sources import FileScan

_NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")
Scans = dict[str, PlannedSource]  # by path below the folder


def read_folders(images: Path, data: LabelledData, task: Task) -> Gathered:
    """The scans below `images`, labelled by `data.labels`; UserError for a label that is of none of them."""
    if not data.labels:
        raise UserError(f"data.labels is not given: where are the labels of the scans in {images}?")
    found = Gathered([])
    book = label_book(data.label_paths, task, found.mistakes)
    scans = scans_below(images, data, book, found)
    for name in book.unused(list(scans)):
        found.mistakes.add(f"label '{name}' has no image of that name in {images}{_near(name, scans, found)}")
    for reason, count in book.left_out.items():
        found.drop(reason, count)
    cases = grouped(scans, book, found.mistakes)
    numbers = sorted({number for channels in cases.values() for number in channels})
    if len(numbers) > 1:
        found.channels, found.modalities = [f"channel_{n}" for n in numbers], [""] * len(numbers)
    for name, channels in cases.items():
        with found.mistakes.each():
            found.items.append(item_of(name, [channels.get(n) for n in numbers], book, task, data.label_paths))
    with found.mistakes.each():
        found.items = complete(found.items, found.channels, data.allow_missing, str(images))
    return found


def _near(name: str, scans: Scans, found: Gathered) -> str:
    """Why a label has no scan: its file cannot be read, or is called so in another case."""
    for path, reason in found.refused.items():
        if "/".join(parts_of(path)).endswith(name):
            return f" ({path} is there, but: {reason})"
    near = next((each for each in scans if "/".join(parts_of(each)).casefold().endswith(name.casefold())), None)
    return "" if near is None else f" (there is {near}: names must agree in case too)"


def label_book(paths: Sequence[Path], task: Task, mistakes: Mistakes | None = None) -> LabelBook:
    """Labels of files and folders: a folder without VOC files holds masks. UserError where the task needs others."""
    for path in paths:
        if not path.exists():
            raise UserError(f"the labels '{path}' do not exist")
    folders = [path for path in paths if path.is_dir() and next(path.rglob("*.xml"), None) is None]
    masks = folders + [path for path in paths if path.is_file() and _is_mask(path)]
    lists = [path for path in paths if path not in masks]
    tables = [path for path in lists if path.is_file() and path.suffix.lower() not in (".json", ".xml")]
    if isinstance(task, ClassificationTask | RegressionTask):
        if masks or not lists:
            raise UserError(f"{task.name} needs a list of labels (CSV), not the folder {masks[0]}")
        return open_labels(lists, [], False, Columns(task.id_column, (task.label_column,)), mistakes)
    if isinstance(task, DetectionTask):
        return open_labels(lists, masks, False, Columns(task.id_column, (), task.label_column), mistakes)
    if tables:
        raise UserError(f"segmentation needs a folder of label maps, not the file {tables[0]}")
    return open_labels(lists, masks, False)


def _is_mask(path: Path) -> bool:
    return suffix_of(path) not in (".json", ".csv", ".tsv", ".txt", ".xml")


def scans_below(root: Path, data: LabelledData, book: LabelBook, found: Gathered) -> Scans:
    """All scans below `root` but the masks of `book`; those that cannot be read are counted in `found`.

    Hashes are those of `scanforge data build` of the same folder. UserError where there is none.
    """
    if not root.exists():
        raise UserError(f"the folder of images '{root}' does not exist")
    planned, none = find_sources(
        [root],
        site_key(data.key_file),
        data.patient_regex,
        book,
        lambda where, files: find_dicom(where, files, 1, lambda what, done, total: None),
    )
    if not planned:
        raise UserError(f"no readable scan (NIfTI, DICOM, PNG, ...) in the folder of images '{root}'")
    found.refused = {each.path: each.reason for each in none if each.kind == "refused"}
    found.drop("files that cannot be read", len(found.refused))
    return {each.source.relative: each for each in sorted(planned, key=lambda each: each.source.files)}


def grouped(scans: Scans, book: LabelBook, mistakes: Mistakes) -> dict[str, dict[int, PlannedSource]]:
    """Channels by case. `x_0001` is a channel of `x` where it has no label of its own, and `x` has one.

    Two images of one name are kept in `mistakes`.
    """
    cases: dict[str, dict[int, PlannedSource]] = defaultdict(dict)
    for relative, scan in scans.items():
        *folders, stem = parts_of(relative)
        match = _NUMBERED.fullmatch(stem)
        whole = match is not None and book.of(relative) is None
        if match and whole and book.of("/".join((*folders, match["case"]))) is not None:
            cases["/".join((*folders, match["case"]))][int(match["number"])] = scan
        else:
            name = "/".join((*folders, stem))
            if suffix_of(relative) not in SUFFIXES and "/".join(folders) not in cases:
                name = "/".join(folders) or name  # a DICOM series is called as its folder
            if name in cases:
                first = cases[name][0].source.relative
                mistakes.add(f"two images are called '{name}': {first} and {relative}")
                continue
            cases[name][0] = scan
    return dict(cases)


def item_of(
    name: str,
    channels: Sequence[PlannedSource | None],
    book: LabelBook,
    task: Task,
    labels: Sequence[Path],
    images: tuple[ScanSource | None, ...] | None = None,
) -> Item:
    """A case of files, its label looked up by its name or that of its first channel."""
    first = next(channel for channel in channels if channel is not None)
    ref = book.of(first.source.relative) or book.of(name)
    known = labelled(ref)
    # In a list of boxes, a scan without a line has none; a drawing that is not there was never made.
    if ref is None and isinstance(task, DetectionTask) and labels and all(p.suffix.lower() == ".csv" for p in labels):
        known = {"boxes": ()}
    files = tuple(None if channel is None else FileScan(channel.source) for channel in channels)
    return Item(name, first.order, first.patient, files if images is None else images, **known)
