"""Channels by pattern: `t1: "*/t1.nii.gz"`, or by folder: `t1: images_t1`. What the wildcards stand for is the case."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from scanforge.configs.errors import UserError
from scanforge.datasets.labels.book import LabelBook
from scanforge.datasets.labels.names import parts_of
from scanforge.datasets.readers import find_scans, suffix_of
from scanforge.datasets.shards.sources import PlannedSource
from scanforge.finetune.config import ClassificationTask, LabelledData, RegressionTask, Task
from scanforge.finetune.data.assemble import Gathered, Item, labelled
from scanforge.finetune.data.folders import label_book, scans_below
from scanforge.finetune.data.missing import complete
from scanforge.finetune.data.sources import FileScan, scan_file


def read_patterns(root: Path, channels: Mapping[str, str], data: LabelledData, task: Task) -> Gathered:
    """The cases below `root`; `data.labels` is one more pattern or folder, or for classes and values a CSV.

    UserError where a pattern meets nothing, or two files of one case.
    """
    found = Gathered([], list(channels), [""] * len(channels))
    masks, book = _labels(root, data, task)
    claimed = {(root / relative).resolve() for relative in masks.values()}
    scans = scans_below(root, data, LabelBook(claimed=claimed), found)
    matched = [_matches(root, pattern, scans) for pattern in channels.values()]
    names = sorted({name for each in matched for name in each})
    unknown = sorted(masks.keys() - set(names)) if book is None else book.unused(names)
    for each in unknown:
        found.mistakes.add(f"label '{masks.get(each, each)}' is of no case that data.channels finds in {root}")
    items = []
    for name in names:
        of_case = [scans[each[name]] if name in each else None for each in matched]
        known = {"mask": scan_file(root / masks[name])} if name in masks else {}
        if book is not None:
            known = labelled(book.of(name))
        items.append(_item(name, of_case, known))
    with found.mistakes.each():
        found.items = complete(items, found.channels, data.allow_missing, str(root))
    _say_whose(found, [[scans[each[name]] for each in matched if name in each] for name in names])
    return found


def _item(name: str, channels: list[PlannedSource | None], known: dict) -> Item:
    first = next(channel for channel in channels if channel is not None)
    files = tuple(None if channel is None else FileScan(channel.source) for channel in channels)
    return Item(name, first.order, first.patient, files, **known)


def _labels(root: Path, data: LabelledData, task: Task) -> tuple[dict[str, str], LabelBook | None]:
    """Masks by case, or labels of a list."""
    paths = data.label_paths
    if not paths:
        raise UserError("data.labels is not given: a pattern such as '*/seg.nii.gz', or a list (CSV)")
    if isinstance(task, ClassificationTask | RegressionTask) or all(path.is_file() for path in paths):
        return {}, label_book(paths, task)
    if len(paths) > 1:
        raise UserError("with data.channels, data.labels is one pattern or folder below data.path")
    pattern = paths[0]
    if pattern.is_absolute():
        if not pattern.is_relative_to(root):
            raise UserError(f"data.labels '{pattern}' is not below data.path '{root}', as data.channels asks")
        pattern = pattern.relative_to(root)
    return _matches(root, pattern.as_posix(), [relative for _, relative in find_scans([root])]), None


def _matches(root: Path, pattern: str, relatives: Iterable[str]) -> dict[str, str]:
    """Path by case, of the `relatives` that `pattern` describes."""
    matches: dict[str, str] = {}
    folder = pattern.rstrip("/") if (root / pattern).is_dir() else None
    expression = None if folder else _expression(pattern.removesuffix(".*"))
    for relative in sorted(relatives):
        if folder is not None:
            inside = relative.startswith(f"{folder}/")
            name = "/".join(parts_of(relative.removeprefix(f"{folder}/"))) if inside else ""
        else:
            # A '*' at the end stands for a name, not for its suffix.
            text = relative.removesuffix(suffix_of(relative)) if pattern.endswith("*") else relative
            match = expression.fullmatch(text) if expression else None
            name = _case(match.groups()) if match else ""
        if not name:
            continue
        if name in matches:
            raise UserError(f"'{pattern}' finds two files of case '{name}': {matches[name]} and {relative}")
        matches[name] = relative
    if not matches:
        raise UserError(f"'{pattern}' finds no scan in {root}; patterns are relative to it, as in '*/t1.nii.gz'")
    return matches


def _expression(pattern: str) -> re.Pattern[str]:
    if "*" not in pattern:
        raise UserError(f"'{pattern}' is no folder and holds no '*' that tells the cases apart")
    return re.compile("".join("([^/]*)" if part == "*" else re.escape(part) for part in re.split(r"(\*)", pattern)))


def _case(groups: tuple[str, ...]) -> str:
    """What the wildcards stand for; the same text twice in a row ('x/x_t1.nii.gz') counts once."""
    kept = [group for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]
    return "/".join(kept)


def _say_whose(found: Gathered, cases: list[list[PlannedSource]]) -> None:
    if any(len({scan.patient for scan in case}) > 1 for case in cases):
        found.warnings.append(
            "nothing names the patients, and the channels of a case are hashed as patients of their own: whether the "
            "pre-training saw a case is checked by its first channel alone. Set data.patient_regex, here and in the "
            "build."
        )
