"""From what is known of each scan to the cases of a task."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.configs.parsing.checking import near
from scanfoundry.datasets.identity import site_fingerprint, site_key
from scanfoundry.datasets.labels import Box as DrawnBox
from scanfoundry.datasets.labels import LabelRef
from scanfoundry.datasets.readers.labels import IGNORED
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.cases import UNLABELLED, Case, CaseList, ScanSource, Stated, Target
from scanfoundry.finetune.cases.modality import modalities_of
from scanfoundry.finetune.cases.sources import for_its_numbers, mask_files
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.labels import ReadsBoxes, ReadsClasses, ReadsMasks, ReadsValues
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.spelling import among
from scanfoundry.finetune.formats.values import class_of_each, one_class_each, value_of_each

Drawn = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class LabelledItem:
    """A scan and all that is known of it, before a task asks for one thing.

    Attributes:
        name: what its user calls it.
        key, patient: keyed hashes.
        images: one for each channel, None where it is missing.
        mask: where its mask is read from.
        names: of the mask's values.
        boxes: in voxels of the file; None where nobody looked for any.
        drawn_on: (D, H, W) of what the boxes were drawn on, None where nobody says.
        values: cells by column.
        split: 'train', 'val', 'test' or ''.
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
    """What a format found.

    Attributes:
        items: the scans.
        channels: their names.
        modalities: of the channels, '' where the format does not know them.
        left_out: what stays out, counted by reason.
        warnings: what a reader of the numbers should know.
        site: fingerprint of the key that the hashes are of; '' for this site's own.
        notes: how something was read that may have been meant otherwise.
        refused: files that cannot be read, with the reason.
        mistakes: what has to be mended before anything is trained; the cases are without it.
    """

    items: list[LabelledItem]
    channels: list[str] = field(default_factory=lambda: ["image"])
    modalities: list[str] = field(default_factory=lambda: [""])
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    site: str = ""
    notes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    mistakes: Mistakes = field(default_factory=lambda: Mistakes("the data set"))

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts what stays out."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


def labelled(ref: LabelRef | None) -> dict[str, Any]:
    """The fields of an `LabelledItem` that a label of `scanfoundry.datasets.labels` fills."""
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
    """The cases of `task`.

    Args:
        found: what the format found.
        data: what the user says of the data set.
        task: which labels are looked for.
        where: the data set, for messages.

    Returns:
        The cases; mistakes of single cases are in the list's `mistakes`, see `discover.known_cases`.

    Raises:
        UserError: no scan has a label, or labels contradict the task.
    """
    counts = Counter(item.name for item in found.items)
    for name in (name for name, count in counts.items() if count > 1):
        found.mistakes.add(f"{where} names '{name}' twice")
    found.items = list({item.name: item for item in found.items}.values())
    targets, classes, stated = _targets(found, task, where)
    kept = [item for item in found.items if item.name in targets]
    found.drop(UNLABELLED, len(found.items) - len(kept))
    if not kept:
        out = "; ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise UserError(
            f"no scan of {where} has a label for {task.name}; names must agree up to the suffix (left out: {out})"
        )
    if len({item.patient for item in kept}) == len(kept) > 1 and not found.warnings and not found.site:
        found.warnings.append(
            "each case counted as a patient of its own: where some are of one patient, set data.patient_regex."
        )
    return CaseList(
        [Case(item.key, item.patient, item.images, targets[item.name], item.drawn_on, stated) for item in kept],
        classes,
        found.left_out,
        found.channels,
        modalities_of(found.channels, found.modalities, data.modality),
        {item.key: item.split for item in kept if item.split},
        {item.key: item.name for item in kept},
        found.warnings + found.notes,
        found.site or site_fingerprint(site_key(data.key_file)),
        [Case(i.key, i.patient, i.images, None) for i in found.items if i.name not in targets and i.split != "test"],
        found.mistakes,
    )


def _targets(found: Gathered, task: Task, where: str) -> tuple[dict[str, Any], list[str] | None, Stated]:
    """Targets by the name of their item, the classes, and what is stated of the values of masks."""
    items = found.items
    cells = {item.name: item.values for item in items}
    if isinstance(task, ReadsClasses):
        return *class_of_each(cells, task, where, found.mistakes, found.notes), Stated()
    if isinstance(task, ReadsValues):
        return value_of_each(cells, task, where, found.mistakes), [], Stated()
    masks: dict[str, Target | None] = {i.name: for_its_numbers(i.mask) for i in items if i.mask is not None}
    if isinstance(task, ReadsMasks):
        stated = _stated(task, [item.names for item in items], where)
        return masks, stated.classes, stated
    assert isinstance(task, ReadsBoxes)
    boxes = {item.name: item.boxes for item in items if item.boxes is not None}
    if not boxes:
        stated = Stated()
        if task.masks == "components" and not task.classes:
            stated = _without_ignored(_names([item.names for item in items], where))
        if stated.ignored:
            raise UserError(
                f"{where}: label 'ignore': a detection looks at whole scans; name the findings in task.classes"
            )
        return masks, task.classes or stated.classes or ["finding"], stated
    drawn, classes = _drawn(found, boxes, task, where)
    return masks | drawn, classes, Stated()


def _stated(task: ReadsMasks, given: Sequence[dict[int, str]], where: str) -> Stated:
    """By the task, else by the data set; what either says is left out, is."""
    extra = () if task.ignore is None else (task.ignore,)
    if task.values is None and task.classes is None:
        return _without_ignored(_names(given, where, extra), extra)
    values = dict(task.values or enumerate(task.classes or (), start=1))
    values.pop(0, None)
    known = {value for names in given for value, name in names.items() if name.lower() == IGNORED}
    return _without_ignored(values, (*extra, *sorted(known - values.keys())))


def _without_ignored(names: dict[int, str] | None, extra: tuple[int, ...] = ()) -> Stated:
    ignored = {*extra, *(value for value, name in (names or {}).items() if name.lower() == IGNORED)}
    kept = {value: name for value, name in (names or {}).items() if value not in ignored}
    return Stated(kept or None, tuple(sorted(ignored)))


def _names(given: Sequence[dict[int, str]], where: str, ignored: tuple[int, ...] = ()) -> dict[int, str] | None:
    """Names of the mask values, in their order; None where none has one."""
    names: dict[int, str] = {}
    for each in given:
        for value, name in each.items():
            if value not in ignored and names.setdefault(value, name) != name:
                raise UserError(
                    f"{where} calls label {value} both '{names[value]}' and '{name}'; set task.classes or task.values"
                )
    return dict(sorted(names.items())) or None


def _drawn(
    found: Gathered, boxes: dict[str, tuple[DrawnBox, ...]], task: ReadsBoxes, where: str
) -> tuple[dict[str, Target], list[str]]:
    counts = Counter(box.label for each in boxes.values() for box in each)
    if task.classes:
        spelled = {label: known for label in counts if (known := among(label, task.classes)) is not None}
        for label in sorted(counts.keys() - spelled.keys()):
            of = f"which is not among task.classes {task.classes}{near(label, task.classes)}"
            found.mistakes.add(f"{where}: a box is of class '{label}', {of}")
        classes = task.classes
    else:
        spelled = one_class_each(counts, f"{where}: its list of boxes", "boxes", found.notes)
        classes = sorted(set(spelled.values())) or ["finding"]
    return {
        name: Boxes.of(
            ((*box.low, *box.high), classes.index(spelled[box.label])) for box in each if box.label in spelled
        )
        for name, each in boxes.items()
    }, classes
