"""Channels by pattern: `t1: "*/t1.nii.gz"`, or by folder: `t1: images_t1`. What the wildcards stand for is the case."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.sources import PlannedSource
from scanfoundry.datasets.labels.label_index import LabelIndex
from scanfoundry.datasets.labels.pairing.names import FIRST_CHANNEL, whole_parts_of
from scanfoundry.datasets.readers import find_scans
from scanfoundry.datasets.readers.paths import cases_of, split_pattern
from scanfoundry.finetune.cases.sources import FileScan, scan_file
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.labels import ReadsColumn
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.assemble import Gathered, LabelledItem, labelled
from scanfoundry.finetune.formats.folders import label_book, scans_below
from scanfoundry.finetune.formats.missing import complete


def read_pattern(images: Path, data: LabelledData, task: Task) -> Gathered:
    """The cases of `data.images` and `data.labels` of which at least one is a pattern ('img_*.png', 'mask_*.png')."""
    root, pattern = split_pattern(images) or (images, ".")
    return read_patterns(root, {"image": pattern}, data, task)


def read_patterns(root: Path, channels: Mapping[str, str], data: LabelledData, task: Task) -> Gathered:
    """The cases below a folder that meet patterns.

    Args:
        root: the folder.
        channels: a pattern for each.
        data: its `labels` is one more pattern or folder, or for classes and values a CSV.
        task: which labels are looked for.

    Raises:
        UserError: a pattern meets nothing, or two files of one case.
    """
    found = Gathered([], list(channels), [""] * len(channels))
    masks, book = _labels(root, data, task)
    claimed = {path.resolve() for path in masks.values()}
    scans = scans_below(root, data, LabelIndex(claimed=claimed), found)
    matched = [_matches(root, pattern, scans) for pattern in channels.values()]
    names = sorted({name for each in matched for name in each})
    unknown = sorted(masks.keys() - set(names)) if book is None else book.unused(names)
    images = f"'{data.images}' finds" if data.images is not None else f"data.channels finds in {root}"
    for each in unknown:
        label = _below(masks[each], root) if each in masks else each
        found.mistakes.add(f"label '{label}' is of no case that {images}")
    items = []
    for name in names:
        of_case = [scans[each[name]] if name in each else None for each in matched]
        known = {"mask": scan_file(masks[name])} if name in masks else {}
        if book is not None:
            known = labelled(book.of(name))
        items.append(_item(name, of_case, known))
    with found.mistakes.each():
        found.items = complete(items, found.channels, data.allow_missing, str(root))
    _say_whose(found, [[scans[each[name]] for each in matched if name in each] for name in names])
    return found


def _item(name: str, channels: list[PlannedSource | None], known: dict) -> LabelledItem:
    first = next(channel for channel in channels if channel is not None)
    files = tuple(None if channel is None else FileScan(channel.source) for channel in channels)
    return LabelledItem(name, first.order, first.patient, files, **known)


def _labels(root: Path, data: LabelledData, task: Task) -> tuple[dict[str, Path], LabelIndex | None]:
    """Masks by case, or labels of a list."""
    paths = data.label_paths
    if not paths:
        raise UserError("data.labels is not given: a pattern such as '*/seg.nii.gz', or a list (CSV)")
    if isinstance(task, ReadsColumn) or all(path.is_file() for path in paths):
        return {}, label_book(paths, task)
    if len(paths) > 1:
        raise UserError("with patterns of images, data.labels is one pattern or folder")
    pattern = paths[0]
    if data.images is not None:  # both are given from here
        root, inside = split_pattern(pattern) or (pattern, ".")
        if not root.is_dir():
            raise UserError(f"the folder of labels '{root}' does not exist")
        pattern = Path(inside)
    elif pattern.is_absolute():
        if not pattern.is_relative_to(root):
            raise UserError(f"data.labels '{pattern}' is not below data.path '{root}', as data.channels asks")
        pattern = pattern.relative_to(root)
    files = _matches(root, pattern.as_posix(), [relative for _, relative in find_scans([root])])
    return {name: root / relative for name, relative in files.items()}, None


def _matches(root: Path, pattern: str, relatives: Iterable[str]) -> dict[str, str]:
    """Path by case, of the `relatives` that `pattern` describes; those below it, where it is a folder."""
    if (root / pattern).is_dir():
        prefix = "" if pattern == "." else f"{pattern.rstrip('/')}/"
        matches = _by_path(pattern, prefix, [each for each in relatives if each.startswith(prefix)])
    else:
        matches = cases_of(pattern, relatives)
    if not matches:
        raise UserError(f"'{pattern}' finds no scan in {root}; patterns are relative to it, as in '*/t1.nii.gz'")
    return matches


def _by_path(pattern: str, prefix: str, relatives: Sequence[str]) -> dict[str, str]:
    """By the path below the folder `prefix`, without nnU-Net's `_0000` where all have it."""
    names = {relative: "/".join(whole_parts_of(relative.removeprefix(prefix))) for relative in relatives}
    if all(name.endswith(FIRST_CHANNEL) for name in names.values()):
        names = {relative: name.removesuffix(FIRST_CHANNEL) for relative, name in names.items()}
    matches: dict[str, str] = {}
    for relative, name in sorted(names.items()):
        if name in matches:
            raise UserError(f"'{pattern}' finds two files of case '{name}': {matches[name]} and {relative}")
        matches[name] = relative
    return matches


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _say_whose(found: Gathered, cases: list[list[PlannedSource]]) -> None:
    if any(len({scan.patient for scan in case}) > 1 for case in cases):
        found.warnings.append(
            "nothing names the patients, and the channels of a case are hashed as patients of their own: whether the "
            "pre-training saw a case is checked by its first channel alone. Set data.patient_regex, here and in the "
            "build."
        )
