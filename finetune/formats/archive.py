"""MedMNIST's .npz, and others of its form: {train,val,test}_images with _labels (or _masks), 2D and 3D."""

import atexit
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.datasets.readers import ReadError, Scan, file_source, scans_of
from scanfoundry.datasets.readers.arrays import STACK
from scanfoundry.datasets.readers.label_values import as_drawn
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.labels import ReadsColumn
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.assemble import Gathered, LabelledItem

_ANY = ("class", "label", "value")  # what the one label of an archive may be called


class Archive:
    """The entries of one file in their order. Decoded one after the other: going back means starting again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._entries: Iterator[Scan] = iter(())
        self._next = -1
        self._last: Scan | None = None

    def entry(self, position: int) -> Scan:
        """Entry number `position`; UserError where the file is damaged or holds fewer."""
        with self._lock:
            try:
                return self._seek(position)
            except (ReadError, OSError) as error:
                self._next = -1
                raise UserError(f"{self.path}: {error}") from error

    def _seek(self, position: int) -> Scan:
        if self._last is not None and position == self._next - 1:
            return self._last
        if self._next < 0 or position < self._next:
            self._entries, self._next = scans_of(file_source(self.path.parent, self.path.name)), 0
        for scan in self._entries:
            self._last, self._next = scan, self._next + 1
            if self._next > position:
                return scan
        raise UserError(f"{self.path} has changed: it holds no entry {position} any more")


@lru_cache(maxsize=4)
def opened(path: Path) -> Archive:
    """One reader for all entries of a file."""
    return Archive(path)


atexit.register(opened.cache_clear)  # an open generator that is left to the interpreter's end complains there


@dataclass(frozen=True)
class ArrayItem:
    """One entry of an .npz, or its mask.

    Attributes:
        path: of the archive.
        position: number of the entry.
        part: name of the array in the archive.
        mask: whether it is a mask and no scan.
    """

    path: Path
    position: int
    part: str  # 'train-17'
    mask: bool = False

    def __str__(self) -> str:
        return f"{self.path} ({self.part})"

    def read(self) -> Scan:
        """The entry; UserError where the file is damaged."""
        scan = opened(self.path).entry(self.position)
        if not self.mask:
            return scan
        if scan.labels.mask is None:
            raise UserError(f"{self} has no mask")
        return replace(scan, voxels=as_drawn(scan.labels.mask, scan.labels.greys)[None], indices=None)


def read_archive(path: Path, data: LabelledData, task: Task) -> Gathered:
    """Every entry of an .npz, those without a label too.

    Args:
        path: of the archive.
        data: what the user says of the data set.
        task: which labels are looked for.

    Raises:
        UserError: it is damaged, or an image has several labels of which none is chosen.
    """
    if data.labels:
        raise UserError(f"{path} holds its labels itself: leave out data.labels")
    key, identity = site_key(data.key_file), path.name
    found = Gathered([])
    known: list[dict[str, str | float]] = []
    _check_sides(path)
    try:
        for position, scan in enumerate(scans_of(file_source(path.parent, path.name))):
            if not scan.part:
                raise UserError(f"{path} holds no '..._images' of many scans: it is no data set")
            item = LabelledItem(
                scan.part,
                keyed_hash(key, "scan", f"{identity}\0{scan.part}"),
                keyed_hash(key, "patient", f"{identity}\0{scan.patient}"),
                (ArrayItem(path, position, scan.part),),
                mask=ArrayItem(path, position, scan.part, True) if scan.labels.mask is not None else None,
                split=scan.split,
            )
            found.items.append(item)
            known.append({**scan.labels.classes, **scan.labels.targets})
    except (ReadError, OSError) as error:
        raise UserError(f"{path}: {error}") from error
    if isinstance(task, ReadsColumn):
        column = _column(path, known, task)
        cells = [{task.label_column: each[column]} if column in each else {} for each in known]
        found.items = [replace(item, values=cell) for item, cell in zip(found.items, cells, strict=True)]
    found.warnings.append(
        f"{path.name} names no patients: each image counted as a patient of its own, so images of one may be on both "
        "sides of a split of ours. The official one (split.official=true) is its authors' word."
    )
    return found


def _column(path: Path, known: Sequence[dict[str, str | float]], task: ReadsColumn) -> str:
    """Which of the labels of the images the task asks for; an image whose label is NaN has none."""
    names = sorted({name for each in known for name in each}, key=lambda name: (len(name), name))
    if not names:
        raise UserError(
            f"{path} names no label of any image: it needs 'labels' beside 'images', or 'train_labels', ..."
        )
    if task.label_column in names:
        return task.label_column
    untold = type(task).model_fields["label_column"].default  # as it stands in a run folder, where all is told
    if names == ["label"] and task.label_column in (*_ANY, untold):
        return "label"
    if names == ["label"]:
        raise UserError(f"{path} has no labels '{task.label_column}': leave out task.label_column")
    one_hot = all(sorted(float(value) for value in each.values()) == [0.0] * (len(names) - 1) + [1.0] for each in known)
    hint = "; each image has a single 1, so these may be classes: save the place of the 1 instead" if one_hot else ""
    raise UserError(f"{path}: {len(names)} labels for each image; choose one: task.label_column={names[0]}, ...{hint}")


def _check_sides(path: Path) -> None:
    """UserError for a stack of images whose side nobody knows: they would be lost without a word."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {error}") from error
    strange = [name for name in names if name.endswith("images") and STACK.fullmatch(name) is None]
    if strange and any(STACK.fullmatch(name) for name in names):
        raise UserError(f"{path}: '{strange[0]}' is none of images, train_images, val_images and test_images")
