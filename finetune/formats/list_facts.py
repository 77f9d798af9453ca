"""What a list of cases says besides its cases, and what in it is not used."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from scanfoundry.configs.errors import Mistakes
from scanfoundry.datasets.labels.masks import dataset_names
from scanfoundry.datasets.labels.tables.columns import value_of
from scanfoundry.datasets.labels.tables.rows import column_named
from scanfoundry.datasets.labels.tables.table import FoundLabels
from scanfoundry.finetune.cases.modality import modality_named
from scanfoundry.finetune.formats.entries import SPLITS, Entries
from scanfoundry.finetune.formats.spelling import number_of


def about_labels(found: Entries, path: Path) -> dict[int, str]:
    """Names of the values of masks, where MONAI's list has 'labels'.

    Raises:
        UserError: they are no names.
    """
    return dataset_names(found.about, FoundLabels(), path) if isinstance(found.about.get("labels"), dict) else {}


def about_modalities(found: Entries, channels: Sequence[str]) -> list[str]:
    """Of each channel, where MONAI's list has 'modality' ({'0': 'CT'}, or one for all); '' where it does not know."""
    stated = found.about.get("modality")
    if isinstance(stated, str):
        return [modality_named(stated)] * len(channels)
    if isinstance(stated, dict) and set(stated) == {str(number) for number in range(len(channels))}:
        return [modality_named(str(stated[str(number)])) for number in range(len(channels))]
    return [""] * len(channels)


def check_patients_once(path: Path, found: Entries, patient: str | None, mistakes: Mistakes) -> None:
    """Keeps a mistake where one number is written in two ways ('1' and '01'): one patient would be on both sides."""
    written: dict[float, dict[str, str]] = defaultdict(dict)
    if patient is None:
        return
    for entry in found.entries:
        text = _text(entry.cells.get(patient))
        if (number := number_of(text)) is not None:
            written[number].setdefault(text, entry.where)
    for places in written.values():
        if len(places) > 1:  # a message never says who
            where = " and ".join(list(places.values())[:2])
            mistakes.add(f"{path}: '{patient}' is the same number, written in two ways: {where}")


def _text(cell: object) -> str:
    if isinstance(cell, float) and cell.is_integer():
        return f"{cell:.0f}"
    return "" if cell is None else str(cell).strip()


def notes_on(found: Entries, split: str | None, patient: str | None) -> list[str]:
    """What a person may think is used, and is not."""
    notes = []
    if column_named(found.columns, "fold") is not None:
        notes.append("the list's 'fold' is not used: to test on one, give the list as split.file too, with split.fold.")
    if split is not None:
        words = Counter(str(entry.cells.get(split) or "").strip() for entry in found.entries)
        strange = sorted(word for word in words if word and word.lower() not in SPLITS)
        if strange:
            notes.append(
                f"the list's column 'split' says '{strange[0]}' ({words[strange[0]]} cases), which is none of train, "
                "val and test: split.official leaves these cases out."
            )
    if patient is not None:
        blank = sum(not value_of(_text(entry.cells.get(patient))) for entry in found.entries)
        if blank:
            notes.append(f"{blank} cases of the list have a blank '{patient}' and count as patients by their path.")
    return notes
