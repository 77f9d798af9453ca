"""Every mistake in the data that can be found before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.datasets.readers import ReadError, Scan
from scanfoundry.datasets.readers.geometry import check_spacing
from scanfoundry.datasets.readers.label_values import is_image
from scanfoundry.finetune.cases.appearance import Look, look_of
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.cases import Case, Grid, Stated
from scanfoundry.finetune.cases.channels import read_channels
from scanfoundry.finetune.cases.label_values import IGNORE, LabelValues
from scanfoundry.finetune.cases.volumes import read_numbers
from scanfoundry.finetune.checks.findings import findings
from scanfoundry.finetune.checks.meaning import check_plausible_findings, decide
from scanfoundry.finetune.checks.seen import Seen
from scanfoundry.finetune.config.tasks.labels import ReadsBoxes, ReadsMasks
from scanfoundry.finetune.config.tasks.registry import Task


@dataclass
class Checked:
    """What stands in the labels.

    empty       cases without a voxel of a class, or without a finding
    digests     by key, a checksum of each case's voxels and label, which changes when somebody edits one of them
    scan_digests  the same of the scans that take part without a label
    grids       by key, the grid of each case
    headers     by key, a checksum of what the headers of all channels say
    boxes       of a detection: by key, the findings
    looks       by key, of each channel, None where it is missing
    classes, values   of a segmentation: the classes, and which numbers in its label maps mean them
    voxels      of a segmentation: by key the voxels of each class
    ignored     of a segmentation: cases of which some voxels are left out
    notes       what a reader of the numbers should know of the labels
    """

    empty: int = 0
    digests: dict[str, int] = field(default_factory=dict)
    scan_digests: dict[str, int] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    headers: dict[str, int] = field(default_factory=dict)
    boxes: dict[str, Boxes] = field(default_factory=dict)
    looks: dict[str, list[Look | None]] = field(default_factory=dict)
    classes: list[str] | None = None
    values: LabelValues | None = None
    voxels: dict[str, list[int]] = field(default_factory=dict)
    ignored: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def highest(self) -> int:
        """The number of classes of the label maps."""
        return len(self.classes or ())


def check_cases(
    cases: Sequence[Case], task: Task, classes: Sequence[str] | None, mistakes: Mistakes | None = None
) -> Checked:
    """Reads every channel and label of `cases` once. A case of a segmentation without a target is only read.

    Values of label maps mean what the cases say (`Case.stated`), else `classes` 1..n, where these are known.
    UserError, naming the sources, for what cannot be read, labels that do not lie on their scan, slices among volumes,
    values that are no classes or have more than one meaning, and where all labels are empty. All cases are looked at
    before; where `mistakes` are given, what is wrong with single cases is kept there instead.
    """
    kept = Mistakes("the data set") if mistakes is None else mistakes
    stated = next((case.stated for case in cases if case.stated is not None), None)
    walk = _Walk(task, list(classes or ()), stated or Stated(dict(enumerate(classes, start=1)) if classes else None))
    for case in cases:
        with kept.each():
            walk.add(case)
    with kept.each():
        walk.check_not_mixed()
    with kept.each():
        walk.settle(whole=not len(kept))
    if mistakes is None:
        kept.raise_if_any()
    return walk.found


class _Walk:
    """What was found so far, on the way through the cases."""

    def __init__(self, task: Task, classes: list[str], stated: Stated) -> None:
        self.found = Checked()
        self._task, self._classes, self._stated = task, classes, stated
        self._given = isinstance(task, ReadsMasks) and task.values is not None
        self._instances = isinstance(task, ReadsBoxes) and task.masks == "instances"
        self._seen, self._keys = Seen(look=stated.values is None and not self._instances), list[str]()
        self._flat: dict[bool, list[str]] = {True: [], False: []}  # images that are a single slice, or a volume

    def add(self, case: Case) -> None:
        """Reads one case; UserError for what is wrong with it alone."""
        scans = read_channels(case.images)
        first = next(scan for scan in scans if scan is not None)
        _check_spacing(case, first)
        self._flat[first.voxels.shape[1] == 1].append(str(case.image))
        voxels = [None if scan is None else scan.voxels for scan in scans]
        target: object = case.target
        if isinstance(self._task, ReadsMasks):
            if case.target is None:
                self._looked_at(case, scans)
                self.found.scan_digests[case.key] = _digest(voxels)
                return
            assert not isinstance(case.target, int | float | Boxes)
            raw = read_numbers(case.target, first, cut=not self._given)
            self._seen.add(case.target, raw, is_image(first))
            self._keys.append(case.key)
            target = raw.numbers
        elif isinstance(self._task, ReadsBoxes):
            target = boxes = findings(case, first, self._task, self._classes or ["finding"], self._seen)
            self.found.boxes[case.key] = boxes
            self.found.empty += not len(boxes)
        self._looked_at(case, scans)
        self.found.digests[case.key] = _digest([*voxels, target])

    def _looked_at(self, case: Case, scans: Sequence[Scan | None]) -> None:
        first = next(scan for scan in scans if scan is not None)
        d, h, w = first.voxels.shape[1:]
        self.found.grids[case.key] = Grid(str(case.image), (d, h, w), first.spacing)
        self.found.headers[case.key] = _digest([part for scan in scans for part in _header(scan)])
        self.found.looks[case.key] = [None if scan is None else look_of(scan) for scan in scans]

    def check_not_mixed(self) -> None:
        """UserError where some images are single slices and others volumes."""
        if all(self._flat.values()):
            fewer = min(self._flat, key=lambda single: len(self._flat[single]))
            kind, count = "a single slice" if fewer else "a volume", len(self._flat[fewer])
            more = f", and {count - 1} more are" if count > 1 else ""
            name = self._flat[fewer][0]
            raise UserError(f"the images mix single slices and volumes ({name} is {kind}{more}); give one kind")

    def settle(self, whole: bool) -> None:
        """What the values of all label maps mean; `whole`: no case is missing, so that all may be called empty."""
        if isinstance(self._task, ReadsMasks) and self._seen.counts:
            _settle(self.found, self._seen, self._keys, self._stated, self._given)
        elif isinstance(self._task, ReadsBoxes) and not self._instances and self._seen.counts:
            check_plausible_findings(self._seen, self._stated.values)
        if whole and self.found.digests and self.found.empty == len(self.found.digests):
            segmented = isinstance(self._task, ReadsMasks)
            what = "label map is empty: there is nothing to segment"
            raise UserError(f"every {what if segmented else 'case is without a finding: there is nothing to detect'}")


def _settle(found: Checked, seen: Seen, keys: Sequence[str], stated: Stated, given: bool) -> None:
    """The classes, and how many voxels each case has of them."""
    found.classes, found.values = decide(seen, stated.values, stated.ignored, given)
    for key, counts in zip(keys, seen.counts, strict=True):
        voxels = [0] * (len(found.classes) + 1)
        codes = found.values.codes(counts, seen.images)
        for value, code in codes.items():
            if code != IGNORE:
                voxels[code] += counts[value]
        found.voxels[key] = voxels[1:]
        found.empty += not any(voxels[1:])
        found.ignored += IGNORE in codes.values()
    if seen.cut:
        found.notes.append(
            f"{seen.cut} of {len(keys)} label maps held greys, as lossy compression leaves them, that are clearly black"
            " and white: they were cut at half."
        )


def _check_spacing(case: Case, scan: Scan) -> None:
    try:
        check_spacing(scan.spacing)  # that of old shards was never looked at
    except ReadError as error:
        raise UserError(f"{case.image}: {error}") from error


def _header(scan: Scan | None) -> tuple[object, ...]:
    """What of a scan decides how it is read, apart from its voxels."""
    if scan is None:
        return (None,)
    form = scan.voxels.shape, scan.voxels.dtype.str  # without which bytes may be those of other voxels
    return (*form, scan.spacing, scan.orientation, scan.affine, scan.modality, scan.frames)


def _digest(parts: Sequence[object]) -> int:
    """Checksum of arrays and of values by how they are written."""
    digest = 0
    for part in parts:
        if isinstance(part, np.ndarray):
            content: Any = np.ascontiguousarray(part).data
        else:
            content = (_as_text(part) if isinstance(part, Boxes) else repr(part)).encode()
        digest = crc32(content, digest)
    return digest


def _as_text(boxes: Boxes) -> str:
    """As earlier versions wrote boxes: a trial that they finished is not trained again."""
    parts = [f"LabelledBox(box={corners}, label={label})" for corners, label in boxes.listed()]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
