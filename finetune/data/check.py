"""Every mistake in the data that can be found before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from scanforge.configs.errors import UserError
from scanforge.datasets.labels.values import is_image
from scanforge.finetune.channels import read_channels
from scanforge.finetune.config import DetectionTask, SegmentationTask, Task
from scanforge.finetune.data.cases import Case, Stated
from scanforge.finetune.data.findings import findings
from scanforge.finetune.data.label_values import IGNORE, LabelValues
from scanforge.finetune.data.meaning import decide, refuse_as_findings
from scanforge.finetune.data.seen import Seen
from scanforge.finetune.volumes import read_mask


@dataclass
class Checked:
    """What stands in the labels.

    empty       cases without a voxel of a class, or without a finding
    marks       by key, a checksum of each case's voxels and label, which changes when somebody edits one of them
    scan_marks  the same of the scans that take part without a label
    classes, values   of a segmentation: the classes, and which numbers in its label maps mean them
    voxels      of a segmentation: by key the voxels of each class
    ignored     of a segmentation: cases of which some voxels are left out
    notes       what a reader of the numbers should know of the labels
    """

    empty: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    scan_marks: dict[str, int] = field(default_factory=dict)
    classes: list[str] | None = None
    values: LabelValues | None = None
    voxels: dict[str, list[int]] = field(default_factory=dict)
    ignored: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def highest(self) -> int:
        """The number of classes of the label maps."""
        return len(self.classes or ())


def check_cases(cases: Sequence[Case], task: Task, classes: Sequence[str] | None) -> Checked:
    """Reads every channel and label of `cases` once. A case of a segmentation without a target is only read.

    Values of label maps mean what the cases say (`Case.stated`), else `classes` 1..n, where these are known.
    UserError, naming the source, for what cannot be read, labels that do not lie on their scan, slices among volumes,
    values that are no classes or have more than one meaning, and where all labels are empty.
    """
    told = next((case.stated for case in cases if case.stated is not None), None)
    stated = told or Stated(dict(enumerate(classes, start=1)) if classes else None)
    look = stated.values is None and not (isinstance(task, DetectionTask) and task.masks == "instances")
    found, depths, seen, keys = Checked(), set(), Seen(look), list[str]()
    given = isinstance(task, SegmentationTask) and task.values is not None
    for case in cases:
        scans = read_channels(case.images)
        first = next(scan for scan in scans if scan is not None)
        depths.add(first.voxels.shape[1] == 1)
        if len(depths) > 1:
            kind = "a single slice" if first.voxels.shape[1] == 1 else "a volume"
            raise UserError(f"the images mix single slices and volumes ({case.image} is {kind}); give one kind")
        voxels = [None if scan is None else scan.voxels for scan in scans]
        target: object = case.target
        if isinstance(task, SegmentationTask):
            if case.target is None:
                found.scan_marks[case.key] = _mark(voxels)
                continue
            assert not isinstance(case.target, int | float | tuple)
            raw = read_mask(case.target, first, cut=not given)
            seen.add(case.target, raw, is_image(first))
            keys.append(case.key)
            target = raw.numbers
        elif isinstance(task, DetectionTask):
            target = findings(case, first, task, classes or ["finding"], seen)
            found.empty += not target
        found.marks[case.key] = _mark([*voxels, target])
    if isinstance(task, SegmentationTask):
        _settle(found, seen, keys, stated, given)
    elif isinstance(task, DetectionTask) and task.masks == "components" and seen.counts:
        refuse_as_findings(seen, stated.values)
    if found.marks and found.empty == len(found.marks):
        what = (
            "label map is empty: there is nothing to segment"
            if isinstance(task, SegmentationTask)
            else ("case is without a finding: there is nothing to detect")
        )
        raise UserError(f"every {what}")
    return found


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


def _mark(parts: Sequence[object]) -> int:
    """Checksum of arrays and of values by how they are written."""
    mark = 0
    for part in parts:
        content = np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else repr(part).encode()
        mark = crc32(content, mark)
    return mark
