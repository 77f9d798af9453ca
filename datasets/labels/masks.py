"""Mask files: which scan each is of, and what its values are called."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.datasets.labels.pairing.names import parts_of, whole_parts_of
from scanfoundry.datasets.labels.pairing.numbered import FIRST_CHANNEL, channel_name
from scanfoundry.datasets.labels.tables.table import FoundLabels
from scanfoundry.datasets.readers import find_scans
from scanfoundry.datasets.readers.labels import LabelRef

Names = dict[int, str]
_DIGITS = 10  # of a label: more are none


def masks_below(path: Path) -> tuple[Path, list[str]]:
    """The absolute folder of masks, or that of a single one, and the readable files below it.

    Raises:
        UserError: the path does not exist, or there is no readable file.
    """
    if not path.exists():
        raise UserError(f"the masks '{path}' do not exist")
    files = [relative for _, relative in find_scans([path]) if not relative.lower().endswith(".npz")]
    if not files:
        raise UserError(f"no readable mask in '{path}'")
    return (path if path.is_dir() else path.parent).absolute(), files


def is_dataset(content: Any) -> bool:
    """Whether a JSON file's content is the `dataset.json` of the Decathlon or nnU-Net."""
    return (
        isinstance(content, dict)
        and "labels" in content
        and any(key in content for key in ("training", "numTraining", "channel_names", "modality", "file_ending"))
    )


def read_dataset(path: Path, content: dict[str, Any]) -> tuple[FoundLabels, set[Path]]:
    """The masks of a dataset.json: those that it lists, or all of `labelsTr` and `labelsTs` beside it.

    Args:
        path: of the file.
        content: what it holds. Several channels of a case (x_0000, x_0001, ...) share its mask.

    Returns:
        The labels with the names of their values, and the resolved mask files.

    Raises:
        UserError: the masks are not there, or a name has two readings.
    """
    found, claimed = FoundLabels(), set()
    names = dataset_names(content, found, path)
    for each, images in (("labelsTr", "imagesTr"), ("labelsTs", "imagesTs")):
        if (path.parent / each).is_dir():
            root, files = masks_below(path.parent / each)
            # Predictions of the same names may lie beside the images.
            beside = f"{images}/" if (path.parent / images).is_dir() else ""
            found.refs += [(f"{beside}{file}", LabelRef(mask=root / file, names=names)) for file in files]
            claimed |= {(root / file).resolve() for file in files}
    listed = content.get("training")
    pairs = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if pairs:
        found.refs = []
        for pair in pairs:
            mask = path.parent / str(pair.get("label") or "")
            if os.path.isfile(mask):  # False too for what is no path
                image = pair.get("image")
                first = image[0] if isinstance(image, list) and image else image  # the others are channels, see below
                found.refs.append((str(first or ""), LabelRef(mask=mask.absolute(), names=names)))
                claimed.add(mask.resolve())
            else:
                found.drop("masks listed, but not there" if pair.get("label") else "cases listed without a mask")
    else:
        _check_one_reading(path, {whole_parts_of(name)[-1] for name, _ in found.refs})
    channels = content.get("channel_names") or content.get("modality") or {}
    more = range(1, len(channels) if isinstance(channels, dict | list) else 0)
    if more:
        firsts = _first_channels(path.parent, [name for name, _ in found.refs]) if pairs else set()
        found.refs = [("/".join(parts_of(name)) if name in firsts else name, ref) for name, ref in found.refs]
        cases = [("/".join(whole_parts_of(name)), ref) for name, ref in found.refs]
        found.refs += [(channel_name(case, channel), ref) for case, ref in cases for channel in more]
    if not found.refs:
        raise UserError(f"{path}: none of its masks is there (labelsTr beside it, or the pairs under 'training')")
    return found, claimed


def _first_channels(root: Path, names: Sequence[str]) -> set[str]:
    """The listed files that are the first channel of a case: x_0000 where x_0001 lies there and is no case."""
    listed = {"/".join(whole_parts_of(name)) for name in names}
    found = set()
    for name in names:
        whole = "/".join(whole_parts_of(name))
        second = channel_name(whole.removesuffix(FIRST_CHANNEL), 1)
        there = os.path.isfile(root / channel_name("", 1).join(name.rsplit(FIRST_CHANNEL, 1)))
        if whole.endswith(FIRST_CHANNEL) and there and second not in listed:
            found.add(name)
    return found


def _check_one_reading(path: Path, stems: set[str]) -> None:
    twice = next((stem for stem in sorted(stems) if f"{stem}{FIRST_CHANNEL}" in stems), None)
    if twice is not None:
        other = f"{twice}{FIRST_CHANNEL}"
        raise UserError(f"{path}: the image {other} may be of case '{twice}' or of case '{other}': rename one of them")


def dataset_names(content: dict[str, Any], found: FoundLabels, path: Path) -> Names:
    """The names of mask values in a dataset.json.

    Args:
        content: of the file: {'1': 'liver'} (Decathlon) or {'liver': 1} (nnU-Net) under 'labels'. Regions that are
            made of several labels are left out, with a note in `found`.
        found: receives the notes.
        path: of the file, for messages.

    Raises:
        UserError: a value is no label, or two names have one value.
    """
    names: Names = {}
    mistakes = Mistakes(str(path))
    for key, value in _pairs(content["labels"], path):
        if isinstance(value, list) and len(value) > 1:
            found.notes.append(f"{path.name}: '{key}' is made of several labels and left out as a name")
            continue
        turned = isinstance(value, str) and _number(key) is not None  # the Decathlon's {"1": "liver"}
        number, name = (_number(key), value) if turned else (_number(value), key)
        if number is None:
            mistakes.add(
                f"{path}: label '{key}' is {json.dumps(value)}: one whole number is needed, as in \"liver\": 1"
            )
        elif names.setdefault(number, name) != name and number > 0:
            mistakes.add(f"{path}: '{names[number]}' and '{name}' are both label {number}")
    mistakes.raise_if_any()
    return {value: name for value, name in names.items() if value > 0}


def _pairs(labels: Any, path: Path) -> list[tuple[str, Any]]:
    if not isinstance(labels, dict):
        raise UserError(f'{path}: \'labels\' is no mapping of names to numbers, as in {{"background": 0, "liver": 1}}')
    return list(labels.items())


def _number(value: Any) -> int | None:
    """The label that a value of JSON is: a whole number from 0 on, also as text, or alone in a list."""
    if isinstance(value, list):
        return _number(value[0]) if len(value) == 1 else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else None


def as_names(content: Any) -> dict[str, Names] | None:
    """Names of values by mask file ({'x.nii.gz': {'1': 'liver'}}), or of all masks under '' ({'1': 'liver'})."""
    if not isinstance(content, dict) or not content:
        return None
    if all(str(key).isdigit() and isinstance(value, str) for key, value in content.items()):
        return {"": {int(key): value for key, value in content.items() if int(key) > 0}}
    if all(isinstance(value, dict) and _only_names(value.items()) for value in content.values()):
        return {
            str(file): {int(key): name for key, name in names.items() if int(key) > 0}
            for file, names in content.items()
        }
    return None


def _only_names(pairs: Iterable[tuple[Any, Any]]) -> bool:
    return all(str(key).isdigit() and isinstance(name, str) for key, name in pairs)


def names_of(names: dict[str, Names], file: str) -> Names:
    """The names of the values of one mask file, else the names that are given for all masks."""
    last = parts_of(file)[-1]
    return next((each for name, each in names.items() if name and parts_of(name)[-1] == last), names.get("", {}))
