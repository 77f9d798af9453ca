"""MedMNIST's .npz, and others of its form: {train,val,test}_images with _labels (or _masks), 2D and 3D."""

import atexit
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import keyed_hash, site_key
from scanforge.datasets.labels.values import as_drawn
from scanforge.datasets.readers import ReadError, Scan, file_source, scans_of
from scanforge.finetune.config import ClassificationTask, LabelledData, RegressionTask, Task
from scanforge.finetune.data.assemble import Gathered, Item


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
    """One entry of an .npz, or its mask."""

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
    """Every entry of an .npz; UserError where it is damaged, or an image has several labels."""
    if data.labels:
        raise UserError(f"{path} holds its labels itself: leave out data.labels")
    key, identity = site_key(data.key_file), path.name
    found = Gathered([])
    try:
        for position, scan in enumerate(scans_of(file_source(path.parent, path.name))):
            if not scan.part:
                raise UserError(f"{path} holds no '..._images' of many scans: it is no data set")
            item = Item(
                scan.part,
                keyed_hash(key, "scan", f"{identity}\0{scan.part}"),
                keyed_hash(key, "patient", f"{identity}\0{scan.patient}"),
                (ArrayItem(path, position, scan.part),),
                mask=ArrayItem(path, position, scan.part, True) if scan.labels.mask is not None else None,
                values=_values(path, scan, task),
                split=scan.split,
            )
            found.items.append(item)
    except (ReadError, OSError) as error:
        raise UserError(f"{path}: {error}") from error
    found.warnings.append(
        f"{path.name} names no patients: each image counted as a patient of its own, so images of one may be on both "
        "sides of a split of ours. The official one (split.official=true) is its authors' word."
    )
    return found


def _values(path: Path, scan: Scan, task: Task) -> dict[str, Any]:
    """Its one label under the column that the task asks for."""
    if not isinstance(task, ClassificationTask | RegressionTask):
        return {}
    known: dict[str, Any] = {**scan.labels.classes, **scan.labels.targets}
    if len(known) > 1 and task.label_column not in known:
        raise UserError(f"{path}: {len(known)} labels for each image; choose one: task.label_column=label-0, ...")
    return {task.label_column: known[task.label_column] if task.label_column in known else next(iter(known.values()))}
