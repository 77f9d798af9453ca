"""Sides that somebody has named: a split file, or the data set's own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scanforge.configs.errors import UserError
from scanforge.datasets.labels.names import ByName, parts_of
from scanforge.finetune.data.cases import Case, CaseList

TRAIN, TEST = ("train", "training", "val", "validation"), ("test", "testing")
Sides = tuple[list[Case], list[Case]]  # to train from, to test on


def sides_of_file(found: CaseList, path: Path, fold: int) -> Sides:
    """The sides of {"train": [ids], "val": [ids], "test": [ids]} (val is trained from), or of one fold of nnU-Net's
    splits_final.json, [{"train": [ids], "val": [ids]}, ...], whose val is tested on.

    Ids are file names or paths, as labels are matched. UserError for an id of no case, one on both sides, a damaged
    file, or a fold that is not there.
    """
    sides, test_names = _read(path, fold)
    train_names = [name for name in sides if name not in test_names]
    train = _named(found, path, [name for key in train_names for name in sides[key]])
    test = _named(found, path, [name for key in test_names for name in sides.get(key, [])])
    both = train & test
    if both:
        raise UserError(f"{path}: '{found.names[min(both)]}' is on both sides")
    return [c for c in found.cases if c.key in train], [c for c in found.cases if c.key in test]


def sides_of_official(found: CaseList) -> Sides:
    """By the split that stands in the data set: 'test' is tested on, 'train' and 'val' are trained from."""
    if "test" not in found.official.values():
        raise UserError("split.official=true, but the data set names no test cases: leave it out")
    test = [case for case in found.cases if found.official.get(case.key) == "test"]
    return [case for case in found.cases if found.official.get(case.key) in ("train", "val")], test


def _read(path: Path, fold: int) -> tuple[Mapping[str, Sequence[str]], tuple[str, ...]]:
    """Ids by side, and which sides are tested on."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the split {path}: {' '.join(str(error).split())}") from error
    tested: tuple[str, ...] = TEST
    if isinstance(content, list):
        if fold >= len(content):
            raise UserError(f"{path} has {len(content)} folds; split.fold={fold} is none of 0 to {len(content) - 1}")
        content, tested = content[fold], ("val",)
    sides = content if isinstance(content, dict) else {}
    lists = all(isinstance(ids, list) and all(isinstance(each, str) for each in ids) for ids in sides.values())
    if not sides or not lists or not set(sides) <= {*TRAIN, *TEST}:
        raise UserError(f'{path} is no split: {{"train": [ids], "test": [ids]}}, or a list of {{"train", "val"}}')
    return sides, tested


def _named(found: CaseList, path: Path, ids: Sequence[str]) -> set[str]:
    """Keys of the cases that the ids name."""
    known = ByName[str]()
    for key, name in found.names.items():
        known.add(name, key)
    keys = set()
    for each in ids:
        match = known.get(each)
        if match is None:
            raise UserError(f"{path} names '{'/'.join(parts_of(each))}', which is no labelled case of the data set")
        keys.add(match[1])
    return keys
