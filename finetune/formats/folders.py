"""A folder of scans, and labels that go by their names; nnU-Net's `_0000`, `_0001`, ... are channels of one case."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.discovery.sources import PlannedSource, find_sources
from scanfoundry.datasets.identity import site_key
from scanfoundry.datasets.labels.label_index import LabelIndex, open_labels
from scanfoundry.datasets.labels.pairing.doubt import Doubt
from scanfoundry.datasets.labels.pairing.names import whole_parts_of
from scanfoundry.datasets.labels.pairing.numbered import channel_count, numbered
from scanfoundry.datasets.labels.tables.table import Columns
from scanfoundry.datasets.readers import SUFFIXES, suffix_of
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.sources import FileScan
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.labels import ReadsBoxes, ReadsColumn
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.assemble import Gathered, LabelledItem, labelled
from scanfoundry.finetune.formats.missing import complete

Scans = dict[str, PlannedSource]  # by path below the folder
CHANNELS = (
    "state the channels, as in data.path=DIR data.channels={a: 'images/*_0000.png', b: 'images/*_0001.png'} "
    "data.labels=masks"
)
_DOUBT = Doubt(
    "data.images='{images}' data.labels='{masks}'",
    f", or {CHANNELS}",
    ", or in a list with the columns image and mask: data.path=list.csv",
)


def read_folders(images: Path, data: LabelledData, task: Task) -> Gathered:
    """The scans below a folder, labelled by `data.labels`.

    Args:
        images: the folder.
        data: what the user says of the data set.
        task: which labels are looked for.

    Raises:
        UserError: a label is of none of the scans.
    """
    if not data.labels:
        raise UserError(f"data.labels is not given: where are the labels of the scans in {images}?")
    found = Gathered([])
    book = label_book(data.label_paths, task, found.mistakes)
    scans = scans_below(images, data, book, found)
    for number, name in enumerate(book.unused(list(scans))):
        hint = _near(name, scans, found)
        if not number and not hint and (advice := book.advice(list(scans))):
            hint = f"; if it is none of them, {advice}"
        found.mistakes.add(f"label '{name}' has no image of that name in {images}{hint}")
    for reason, count in book.left_out.items():
        found.drop(reason, count)
    cases, strays = grouped(scans, book, found.mistakes)
    found.drop("scans without a label that are of no channel", strays)
    numbers = sorted({number for channels in cases.values() for number in channels})
    if len(numbers) > 1:
        found.channels, found.modalities = [f"channel_{n}" for n in numbers], [""] * len(numbers)
    for name, channels in cases.items():
        with found.mistakes.each():
            found.items.append(item_of(name, [channels.get(n) for n in numbers], book, task, data.label_paths))
    with found.mistakes.each():
        found.items = complete(found.items, found.channels, data.allow_missing, str(images))
    return found


def _near(name: str, scans: Scans, found: Gathered) -> str:
    """Why a label has no scan: its file cannot be read, or is called so in another case."""
    for path, reason in found.refused.items():
        if "/".join(whole_parts_of(path)).endswith(name):
            return f" ({path} is there, but: {reason})"
    near = next((each for each in scans if "/".join(whole_parts_of(each)).casefold().endswith(name.casefold())), None)
    return "" if near is None else f" (there is {near}: names must agree in case too)"


def label_book(paths: Sequence[Path], task: Task, mistakes: Mistakes | None = None) -> LabelIndex:
    """Labels of files and folders: a folder without VOC files holds masks.

    Args:
        paths: of the labels.
        task: which labels are looked for.
        mistakes: keeps what is wrong with single labels.

    Raises:
        UserError: the task needs other labels.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"the labels '{path}' do not exist")
    folders = [path for path in paths if path.is_dir() and next(path.rglob("*.xml"), None) is None]
    masks = folders + [path for path in paths if path.is_file() and _is_mask(path)]
    lists = [path for path in paths if path not in masks]
    tables = [path for path in lists if path.is_file() and path.suffix.lower() not in (".json", ".xml")]
    if isinstance(task, ReadsColumn):
        if masks or not lists:
            raise UserError(f"{task.name} needs a list of labels (CSV), not the folder {masks[0]}")
        return open_labels(lists, [], False, Columns(task.id_column, (task.label_column,)), mistakes)
    if isinstance(task, ReadsBoxes):
        return open_labels(lists, masks, False, Columns(task.id_column, (), task.label_column), mistakes, _DOUBT)
    if tables:
        raise UserError(f"segmentation needs a folder of label maps, not the file {tables[0]}")
    return open_labels(lists, masks, False, doubt=_DOUBT)


def _is_mask(path: Path) -> bool:
    return suffix_of(path) not in (".json", ".csv", ".tsv", ".txt", ".xml")


def scans_below(root: Path, data: LabelledData, book: LabelIndex, found: Gathered) -> Scans:
    """All scans below a folder but the masks.

    Hashes are those of `scanfoundry data build` of the same folder.

    Args:
        root: the folder.
        data: what the user says of the data set.
        book: of the labels, whose masks are no scans.
        found: counts what cannot be read.

    Raises:
        UserError: there is no scan.
    """
    if not root.exists():
        raise UserError(f"the folder of images '{root}' does not exist")
    planned, none = find_sources(
        [root],
        site_key(data.key_file),
        data.patient_regex,
        book,
        lambda where, files: find_dicom(where, files, 1, lambda what, done, total: None),
    )
    if not planned:
        raise UserError(f"no readable scan (NIfTI, DICOM, PNG, ...) in the folder of images '{root}'")
    found.refused = {each.path: each.reason for each in none if each.kind == "refused"}
    found.drop("files that cannot be read", len(found.refused))
    return {each.source.relative: each for each in sorted(planned, key=lambda each: each.source.relative)}


def grouped(scans: Scans, book: LabelIndex, mistakes: Mistakes) -> tuple[dict[str, dict[int, PlannedSource]], int]:
    """Scans as cases of one or more channels.

    `x_0001` is a channel of `x` where `x` has a label, is no scan itself, and the cases have the same channels.

    Args:
        scans: by name.
        book: of the labels.
        mistakes: keeps two images of one name.

    Returns:
        Channels by case, and how many scans without a label are of no channel where there are several.

    Raises:
        UserError: the numbers may as well count scans.
    """
    names = _names_of(scans)
    taken = set(names.values())
    numbers = {name: of for name in taken if (of := _case_of(name)) is not None and of[0] not in taken}
    members: dict[str, set[int]] = defaultdict(set)
    for each, place in numbers.values():
        members[each].add(place)
    own = {of[0] for name, of in numbers.items() if book.names_case(name)}
    known = {each: found for each, found in members.items() if each not in own and book.names_case(each)}
    same = [found for each, found in members.items() if each not in {*known, *own} and found in known.values()]
    count = _count_of_channels(known, same)
    cases: dict[str, dict[int, PlannedSource]] = defaultdict(dict)
    strays = 0
    for relative, scan in scans.items():
        name = names[relative]
        case, number = numbers.get(name, ("", 0))
        if not (case in known or (known and case and case not in own and members[case] <= set(range(count)))):
            case, number = name, 0
            if count > 1 and book.of(relative) is None:
                strays += 1
                continue
            if count > 1:
                raise UserError(f"{relative} is of none of the channels 0 to {count - 1}: call it {name}_0000, ...")
        if number in cases[case]:
            first = cases[case][number].source.relative
            mistakes.add(f"two images are called '{case}': {first} and {relative}")
            continue
        cases[case][number] = scan
    return dict(cases), strays


def _count_of_channels(known: dict[str, set[int]], same: list[set[int]]) -> int:
    """How many channels the cases have; UserError where their numbers may as well count scans."""
    count = channel_count([*known.values(), *same])
    if known and not count:
        case, several = max(known.items(), key=lambda each: len(each[1]))
        raise UserError(
            f"'{case}_{min(several):04d}' and '{case}_{max(several):04d}' may be channels of one case '{case}', which "
            f"has a label, or scans of their own: call the label after its scan, or {CHANNELS}"
        )
    return count


def _names_of(scans: Scans) -> dict[str, str]:
    """By path. A DICOM series is called as its folder, a second one there as its first file."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for relative in scans:
        *folders, stem = whole_parts_of(relative)
        name = "/".join((*folders, stem))
        if suffix_of(relative) not in SUFFIXES and "/".join(folders) not in taken:
            name = "/".join(folders) or name
        names[relative] = name
        taken.add(name)
    return names


def _case_of(name: str) -> tuple[str, int] | None:
    *folders, stem = name.split("/")
    found = numbered(stem)
    return ("/".join((*folders, found[0])), found[1]) if found else None


def item_of(
    name: str,
    channels: Sequence[PlannedSource | None],
    book: LabelIndex,
    task: Task,
    labels: Sequence[Path],
    images: tuple[ScanSource | None, ...] | None = None,
    label: str | None = None,
) -> LabelledItem:
    """A case of files, its label looked up by its first channel or its name, or that of `label` alone."""
    first = next(channel for channel in channels if channel is not None)
    ref = book.of(label) if label is not None else book.of(first.source.relative) or book.of(name)
    known = labelled(ref)
    # In a list of boxes, a scan without a line has none; a drawing that is not there was never made.
    if ref is None and isinstance(task, ReadsBoxes) and labels and all(p.suffix.lower() == ".csv" for p in labels):
        known = {"boxes": ()}
    files = tuple(None if channel is None else FileScan(channel.source) for channel in channels)
    return LabelledItem(name, first.order, first.patient, files if images is None else images, **known)
