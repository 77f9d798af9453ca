"""Sides that somebody has named: a split file, or the data set's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.configs.json_file import load_json
from scanfoundry.datasets.labels.pairing.names import ByName, parts_of
from scanfoundry.finetune.cases.cases import Case, CaseList

TRAIN, TEST = ("train", "training", "val", "validation"), ("test", "testing")
Sides = tuple[list[Case], list[Case]]  # to train from, to test on


def sides_of_file(found: CaseList, path: Path, fold: int) -> Sides:
    """The sides that a file of splits says.

    It holds {"train": [ids], "val": [ids], "test": [ids]} (val is trained from), or nnU-Net's splits_final.json,
    [{"train": [ids], "val": [ids]}, ...], of which one fold's val is tested on. A list of cases in MONAI's form may
    stand for either: its sides, or the entries whose 'fold' is `fold` are tested on.

    Args:
        found: the cases; ids are file names or paths, as labels are matched.
        path: of the file.
        fold: which one, where there are several.

    Raises:
        UserError: an id is of no case, one is on both sides, the file is damaged, or the fold is not there.
    """
    sides, test_names = _read(path, fold)
    train_names = [name for name in sides if name not in test_names]
    mistakes, (train, test) = Mistakes(str(path)), (set[str](), set[str]())
    for into, keys in ((train, train_names), (test, test_names)):
        with mistakes.each():
            into.update(_named(found, path, [name for key in keys for name in sides.get(key, [])]))
    for key in sorted(train & test):
        mistakes.add(f"{path}: '{found.names[key]}' is on both sides")
    mistakes.raise_if_any()
    return [c for c in found.cases if c.key in train], [c for c in found.cases if c.key in test]


def sides_of_official(found: CaseList) -> Sides:
    """By the split that stands in the data set: 'test' is tested on, 'train' and 'val' are trained from."""
    if "test" not in found.official.values():
        hint = " with a label" if found.official else ""
        raise UserError(f"split.official=true, but the data set names no test cases{hint}: leave it out")
    test = [case for case in found.cases if found.official.get(case.key) == "test"]
    return [case for case in found.cases if found.official.get(case.key) in ("train", "val")], test


def _read(path: Path, fold: int) -> tuple[Mapping[str, Sequence[str]], tuple[str, ...]]:
    """Ids by side, and which sides are tested on."""
    content: Any = load_json(path, "the split ")
    tested: tuple[str, ...] = TEST
    if isinstance(content, list):
        if fold >= len(content):
            raise UserError(f"{path} has {len(content)} folds; split.fold={fold} is none of 0 to {len(content) - 1}")
        content, tested = content[fold], ("val",)
    sides = content if isinstance(content, dict) else {}
    if _are_cases(sides):
        sides, tested = _of_cases(sides, path, fold)
    lists = all(isinstance(ids, list) and all(isinstance(each, str) for each in ids) for ids in sides.values())
    if not sides or not lists or not set(sides) <= {*TRAIN, *TEST}:
        raise UserError(f'{path} is no split: {{"train": [ids], "test": [ids]}}, or a list of {{"train", "val"}}')
    return sides, tested


def _are_cases(content: dict[str, Any]) -> bool:
    """Whether its lists hold entries of cases, not ids."""
    entries = [each for listed in content.values() if isinstance(listed, list) for each in listed]
    return bool(entries) and all(isinstance(each, dict) and isinstance(each.get("fold", 0), int) for each in entries)


def _of_cases(content: dict[str, Any], path: Path, fold: int) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Ids by side out of entries {"image": path or paths[, "fold": number]}."""
    entries = {key: listed for key, listed in content.items() if isinstance(listed, list)}
    folded = [each for listed in entries.values() for each in listed if "fold" in each]
    if not folded:
        return {key: [_id(each) for each in listed] for key, listed in entries.items()}, TEST
    numbers = sorted({each["fold"] for each in folded})
    if fold not in numbers:
        raise UserError(f"{path}: split.fold={fold} is none of its folds {numbers}")
    train = [_id(each) for each in folded if each["fold"] != fold]
    return {"train": train, "val": [_id(each) for each in folded if each["fold"] == fold]}, ("val",)


def _id(entry: dict[str, Any]) -> str:
    image = entry.get("image")
    return str(image[0] if isinstance(image, list) and image else image)


def _named(found: CaseList, path: Path, ids: Sequence[str]) -> set[str]:
    """Keys of the cases that the ids name."""
    known = ByName[str]()
    for key, name in found.names.items():
        known.add(name, key)
    keys, mistakes = set(), Mistakes(str(path))
    for each in ids:
        with mistakes.each():
            match = known.get(each)
            if match is None:
                raise UserError(f"{path} names '{'/'.join(parts_of(each))}', which is no labelled case of the data set")
            keys.add(match[1])
    mistakes.raise_if_any()
    return keys
