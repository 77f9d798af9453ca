"""Every mistake in the data that can be found before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from scanforge.configs.errors import Mistakes, UserError
from scanforge.datasets.readers import ReadError, Scan
from scanforge.datasets.readers.bounds import refuse_spacing
from scanforge.finetune.channels import read_channels
from scanforge.finetune.config import DetectionTask, SegmentationTask, Task
from scanforge.finetune.data.cases import Case
from scanforge.finetune.data.findings import findings
from scanforge.finetune.data.looks import Look, look_of
from scanforge.finetune.data.modality import modality_named
from scanforge.finetune.volumes import read_labels, refuse_grid, target_shape

_STATED = ("ct", "mr", "pt", "us")


@dataclass
class Checked:
    """What stands in the labels: the highest label of the maps, and how many cases have none at all.

    marks: by key, a checksum of each case's voxels and label, which changes when somebody edits one of them
    scan_marks: the same of the scans that take part without a label
    grids: by key, the first channel by name, its shape (D, H, W) and its spacing in mm
    looks: by key, of each channel, None where it is missing
    """

    highest: int = 0
    empty: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    scan_marks: dict[str, int] = field(default_factory=dict)
    grids: dict[str, tuple[str, tuple[int, ...], tuple[float, float, float]]] = field(default_factory=dict)
    looks: dict[str, list[Look | None]] = field(default_factory=dict)


def check_cases(
    cases: Sequence[Case], task: Task, classes: Sequence[str] | None, mistakes: Mistakes | None = None
) -> Checked:
    """Reads every channel and label of `cases` once. A case of a segmentation without a target is only read.

    UserError, naming the sources, for what cannot be read, labels that do not lie on their scan, slices among volumes,
    labels without a class (where `classes` are known), and where all labels are empty. All cases are looked at before;
    where `mistakes` are given, what is wrong with single cases is kept there instead.
    """
    found = Checked()
    flat: dict[bool, list[str]] = {True: [], False: []}  # images that are a single slice, or a volume
    mistakes, told_later = (Mistakes("the data set"), False) if mistakes is None else (mistakes, True)
    for case in cases:
        with mistakes.each():
            scans = read_channels(case.images)
            first = next(scan for scan in scans if scan is not None)
            _refuse_spacing(case, first)
            found.grids[case.key] = (str(case.image), first.voxels.shape[1:], first.spacing)
            found.looks[case.key] = [None if scan is None else look_of(scan) for scan in scans]
            flat[first.voxels.shape[1] == 1].append(str(case.image))
            voxels = [None if scan is None else scan.voxels for scan in scans]
            target: object = case.target
            if isinstance(task, SegmentationTask):
                if case.target is None:
                    found.scan_marks[case.key] = _mark(voxels)
                    continue
                assert not isinstance(case.target, int | float | tuple)
                target = labels = read_labels(case.target, first)
                highest = int(labels.max())
                if classes is not None and highest > len(classes):
                    raise UserError(f"{case.target}: label {highest}, but classes are {list(classes)}")
                found.highest = max(found.highest, highest)
                found.empty += not highest
            elif isinstance(task, DetectionTask):
                target = findings(case, first, task, classes or ["finding"])
                found.empty += not target
            found.marks[case.key] = _mark([*voxels, target])
    if all(flat.values()):
        fewer = min(flat, key=lambda single: len(flat[single]))
        kind, count = "a single slice" if fewer else "a volume", len(flat[fewer])
        more = f", and {count - 1} more are" if count > 1 else ""
        mistakes.add(f"the images mix single slices and volumes ({flat[fewer][0]} is {kind}{more}); give one kind")
    if not told_later:
        mistakes.tell()
    if not len(mistakes) and found.marks and found.empty == len(found.marks):
        what = (
            "label map is empty: there is nothing to segment"
            if isinstance(task, SegmentationTask)
            else ("case is without a finding: there is nothing to detect")
        )
        raise UserError(f"every {what}")
    return found


def _refuse_spacing(case: Case, scan: Scan) -> None:
    try:
        refuse_spacing(scan.spacing)  # that of old shards was never looked at
    except ReadError as error:
        raise UserError(f"{case.image}: {error}") from error


def _mark(parts: Sequence[object]) -> int:
    """Checksum of arrays and of values by how they are written."""
    mark = 0
    for part in parts:
        content = np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else repr(part).encode()
        mark = crc32(content, mark)
    return mark


def refuse_grids(found: Checked, wanted: tuple[float, float, float]) -> None:
    """UserError, naming the scan, where one cannot be brought to the plan's spacing `wanted` (D, H, W) in mm."""
    for name, (d, h, w), spacing in found.grids.values():
        try:
            refuse_grid((d, h, w), spacing, target_shape((d, h, w), spacing, wanted))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def refuse_modalities(found: Checked, channels: Sequence[str], modalities: Sequence[str]) -> None:
    """UserError, naming the scan, where its header says CT and the data set does not, or the other way round: CT alone
    is scaled by Hounsfield units."""
    for key, looks in found.looks.items():
        for channel, modality, look in zip(channels, modalities, looks, strict=True):
            said, told = look.modality if look else "", modality_named(modality)
            if said in _STATED and told in _STATED and (said == "ct") != (told == "ct"):
                of = "" if len(channels) == 1 else f" of channel '{channel}'"
                raise UserError(
                    f"{found.grids[key][0]}: its header says {said}, data.modality{of} says {told}: set "
                    f"data.modality={said}, or take the file out"
                )
