"""From what is known of each scan to the cases of a task."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scanforge.configs.checking import near
from scanforge.configs.errors import UserError
from scanforge.datasets.identity import site_fingerprint, site_key
from scanforge.datasets.labels import Box as DrawnBox
from scanforge.datasets.labels import LabelRef
from scanforge.finetune.config import (
    ClassificationTask,
    DetectionTask,
    LabelledData,
    RegressionTask,
    SegmentationTask,
    Task,
)
from scanforge.finetune.data.cases import UNLABELLED, Case, CaseList, LabelledBox, ScanSource, Target
from scanforge.finetune.data.modality import modalities_of
from scanforge.finetune.data.sources import mask_files
from scanforge.finetune.data.values import class_of_each, value_of_each

Drawn = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class Item:
    """A scan and all that is known of it, before a task asks for one thing.

    names   of the mask's values; values: cells by column; boxes: None where nobody looked for any
    split   'train', 'val', 'test' or ''
    """

    name: str
    key: str
    patient: str
    images: tuple[ScanSource | None, ...]
    mask: ScanSource | None = None
    names: dict[int, str] = field(default_factory=dict)
    boxes: tuple[DrawnBox, ...] | None = None
    drawn_on: Drawn = (None, None, None)
    values: dict[str, str | float] = field(default_factory=dict)
    split: str = ""


@dataclass
class Gathered:
    """What a format found; `modalities` of the channels are '' where it does not know them.

    site: fingerprint of the key that the hashes are of; '' for this site's own
    """

    items: list[Item]
    channels: list[str] = field(default_factory=lambda: ["image"])
    modalities: list[str] = field(default_factory=lambda: [""])
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    site: str = ""

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts what stays out."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


def labelled(ref: LabelRef | None) -> dict[str, Any]:
    """The fields of an `Item` that a label of `scanforge.datasets.labels` fills."""
    if ref is None:
        return {}
    height, width = ref.size or (None, None)
    return {
        "mask": mask_files([ref.mask, *ref.more_masks]) if ref.mask is not None else None,
        "names": ref.names,
        "boxes": ref.boxes,
        "drawn_on": (1 if ref.flat_boxes else None, height, width),
        "values": {**ref.classes, **ref.targets},
    }


def assemble(found: Gathered, data: LabelledData, task: Task, where: str) -> CaseList:
    """The cases of `task`; UserError, naming the data set `where`, where none has a label, or labels contradict it."""
    names = {item.name for item in found.items}
    if len(names) < len(found.items):
        doubled = Counter(item.name for item in found.items).most_common(1)[0][0]
        raise UserError(f"{where} names '{doubled}' twice")
    targets, classes = _targets(found.items, task, where)
    kept = [item for item in found.items if item.name in targets]
    found.drop(UNLABELLED, len(found.items) - len(kept))
    if not kept:
        raise UserError(f"no scan of {where} has a label for {task.name}; names must agree up to the suffix")
    if len({item.patient for item in kept}) == len(kept) > 1 and not found.warnings and not found.site:
        found.warnings.append(
            "each case counted as a patient of its own: where some are of one patient, set data.patient_regex."
        )
    return CaseList(
        [Case(item.key, item.patient, item.images, targets[item.name], item.drawn_on) for item in kept],
        classes,
        found.left_out,
        found.channels,
        modalities_of(found.channels, found.modalities, data.modality),
        {item.key: item.split for item in kept if item.split},
        {item.key: item.name for item in kept},
        found.warnings,
        found.site or site_fingerprint(site_key(data.key_file)),
        [Case(i.key, i.patient, i.images, None) for i in found.items if i.name not in targets and i.split != "test"],
    )


def _targets(items: Sequence[Item], task: Task, where: str) -> tuple[dict[str, Any], list[str] | None]:
    """Targets by the name of their item, and the classes."""
    if isinstance(task, ClassificationTask):
        return class_of_each({item.name: item.values for item in items}, task, where)
    if isinstance(task, RegressionTask):
        return value_of_each({item.name: item.values for item in items}, task, where), []
    masks: dict[str, Target] = {item.name: item.mask for item in items if item.mask is not None}
    if isinstance(task, SegmentationTask):
        return masks, task.classes or _names([item.names for item in items], where)
    boxes = {item.name: item.boxes for item in items if item.boxes is not None}
    if not boxes:
        named = None if task.masks == "instances" else _names([item.names for item in items], where)
        return masks, task.classes or named or ["finding"]
    drawn, classes = _drawn(boxes, task, where)
    return masks | drawn, classes


def _names(given: Sequence[dict[int, str]], where: str) -> list[str] | None:
    """Names of the mask values 1..n, gaps filled in; None where no value has one."""
    names: dict[int, str] = {}
    for each in given:
        for value, name in each.items():
            if names.setdefault(value, name) != name:
                raise UserError(f"{where} calls label {value} both '{names[value]}' and '{name}'; set task.classes")
    return [names.get(value, f"label {value}") for value in range(1, max(names) + 1)] if names else None


def _drawn(
    boxes: dict[str, tuple[DrawnBox, ...]], task: DetectionTask, where: str
) -> tuple[dict[str, Target], list[str]]:
    known = sorted({box.label for each in boxes.values() for box in each}) or ["finding"]
    classes = task.classes or known
    strange = [label for label in known if label not in classes]
    if strange and any(boxes.values()):
        hint = near(strange[0], classes)
        raise UserError(f"{where}: a box is of class '{strange[0]}', which is not among task.classes {classes}{hint}")
    return {
        name: tuple(LabelledBox((*box.low, *box.high), classes.index(box.label)) for box in each)
        for name, each in boxes.items()
    }, classes
