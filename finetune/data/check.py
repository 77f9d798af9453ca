"""Every mistake in the data that can be found before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from scanforge.configs.errors import UserError
from scanforge.finetune.channels import read_channels
from scanforge.finetune.config import DetectionTask, SegmentationTask, Task
from scanforge.finetune.data.cases import Case
from scanforge.finetune.data.findings import findings
from scanforge.finetune.volumes import read_labels


@dataclass
class Checked:
    """What stands in the labels: the highest label of the maps, and how many cases have none at all."""

    highest: int = 0
    empty: int = 0


def check_cases(cases: Sequence[Case], task: Task, classes: Sequence[str] | None) -> Checked:
    """Reads every channel and label of `cases` once.

    UserError, naming the source, for what cannot be read, labels that do not lie on their scan, slices among volumes,
    labels without a class (where `classes` are known), and where all labels are empty.
    """
    found, depths = Checked(), set()
    for case in cases:
        scans = read_channels(case.images)
        first = next(scan for scan in scans if scan is not None)
        depths.add(first.voxels.shape[1] == 1)
        if len(depths) > 1:
            kind = "a single slice" if first.voxels.shape[1] == 1 else "a volume"
            raise UserError(f"the images mix single slices and volumes ({case.image} is {kind}); give one kind")
        if isinstance(task, SegmentationTask):
            assert case.target is not None
            assert not isinstance(case.target, int | float | tuple)
            highest = int(read_labels(case.target, first).max())
            if classes is not None and highest > len(classes):
                raise UserError(f"{case.target}: label {highest}, but classes are {list(classes)}")
            found.highest = max(found.highest, highest)
            found.empty += not highest
        elif isinstance(task, DetectionTask):
            found.empty += not findings(case, first, task, classes or ["finding"])
    if cases and found.empty == len(cases):
        what = (
            "label map is empty: there is nothing to segment"
            if isinstance(task, SegmentationTask)
            else ("case is without a finding: there is nothing to detect")
        )
        raise UserError(f"every {what}")
    return found
