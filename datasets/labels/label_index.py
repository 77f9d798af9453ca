"""The labels of a build, to look up by scan."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.configs.json_file import load_json
from scanfoundry.datasets.labels.drawn import is_coco, read_coco, read_voc
from scanfoundry.datasets.labels.mask_files import MaskSet
from scanfoundry.datasets.labels.masks import Names, as_names, is_dataset, read_dataset
from scanfoundry.datasets.labels.pairing.doubt import Doubt
from scanfoundry.datasets.labels.pairing.names import ByName, Parts, parts_of
from scanfoundry.datasets.labels.tables.columns import INSIST
from scanfoundry.datasets.labels.tables.personal import MAIL, PERSONS, telling_value
from scanfoundry.datasets.labels.tables.table import Columns, FoundLabels, read_table
from scanfoundry.datasets.readers import SUFFIXES, suffix_of
from scanfoundry.datasets.readers.labels import LabelRef
from scanfoundry.datasets.readers.paths import RealPaths


@dataclass
class _LabelList:
    """One file or folder of labels that name their scans."""

    title: str
    scans: ByName[LabelRef] = field(default_factory=ByName)

    def find(self, relative: str) -> tuple[Parts, LabelRef, bool] | None:
        """(name of the label, label, whether it is of one scan alone)."""
        if (found := self.scans.get(relative)) is not None:
            return *found, True
        *folder, _ = parts_of(relative)
        if suffix_of(relative) not in SUFFIXES:  # a file of a DICOM series: the series goes by its folder's name
            for depth in range(len(folder), 0, -1):
                if (found := self.scans.get("/".join(folder[:depth]))) is not None:
                    return *found, False
        return None


@dataclass
class LabelIndex:
    """The labels of a build by the path of their scan.

    Attributes:
        claimed: resolved mask files, which are no scans.
        listed: resolved files of lists and drawings, which are no scans either.
        notes: what a person should read before the build: columns that are left out, and why.
        left_out: boxes, lines and masks that could not be used, counted by reason.
        doubt: words of the command for names with two readings.
    """

    claimed: set[Path] = field(default_factory=set)
    listed: set[Path] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    doubt: Doubt = field(default_factory=Doubt)
    real: RealPaths = field(default_factory=RealPaths)
    _lists: list[_LabelList] = field(default_factory=list)
    _masks: MaskSet | None = None

    def claim(self, files: Sequence[tuple[Path, str]], others: int) -> None:
        """Tell masks from scans.

        Args:
            files: all files of the inputs, as (root, path below it).
            others: how many files may be DICOM.

        Raises:
            UserError: nothing tells masks from scans.
        """
        roots = {root for root, _ in files}
        self.doubt = replace(self.doubt, root=roots.pop() if len(roots) == 1 else None)
        if self._masks is not None:
            self.claimed -= self._masks.claimed
            self._masks.claim(files, others, self.doubt)
            self.claimed |= self._masks.claimed

    def pair(self, relatives: Sequence[str]) -> None:
        """Find the labels of all scans.

        Raises:
            UserError: the names of masks have two readings.
        """
        for each in self._lists:
            each.scans.keep(relatives)
        if self._masks is not None:
            self._masks.pair(relatives, self.doubt)
            self.left_out |= self._masks.left_out

    def names_case(self, name: str) -> bool:
        """Whether a label is called `name` (a path) exactly, or a mask is of the case of that name."""
        return any(each.scans.knows(name) for each in self._lists) or bool(self._masks and self._masks.knows(name))

    def of(self, relative: str) -> LabelRef | None:
        """The labels of one scan.

        A label is of a scan where the shorter of their two paths is the end of the longer.

        Args:
            relative: path of the scan below its input, '/' between parts.

        Returns:
            The labels of all lists and mask files together; None where there are none.

        Raises:
            UserError: two labels fit equally well, or two lists contradict each other.
        """
        found = [match[1] for each in self._lists if (match := each.find(relative)) is not None]
        if self._masks is not None and (mask := self._masks.of(relative)) is not None:
            found.append(mask)
        if not found:
            return None
        merged = found[0]
        for other in found[1:]:
            merged = _merged(merged, other, relative)
        return merged

    def advice(self, relatives: Sequence[str]) -> str:
        """What to type where masks are of no scan; '' where that is no question of patterns."""
        return self._masks.advice(relatives, self.doubt) if self._masks is not None else ""

    def unused(self, relatives: Sequence[str]) -> list[str]:
        """The names of labels that are of none of the given scans.

        Raises:
            UserError: a whole list is of none of them, or one label is of two scans that differ in their folder only.
        """
        unused: list[str] = []
        mistakes = Mistakes("the labels")
        for each in self._lists:
            owners: dict[Parts, str] = {}
            for relative in relatives:
                match = None
                with mistakes.each():
                    match = each.find(relative)
                if match is None:
                    continue
                name, _, alone = match
                if alone and owners.get(name, relative) != relative:
                    mistakes.add(
                        f"{each.title}: '{'/'.join(name)}' is both {owners[name]} and {relative}; "
                        "name them by more of the path"
                    )
                owners[name] = relative
            if not owners:
                label, scan = "/".join(next(iter(each.scans.names()), ())), next(iter(relatives), "")
                mistakes.add(
                    f"{each.title}: none of its labels is of a scan here; names must agree up to the suffix (a label "
                    f"is called '{label}', a scan '{scan}')"
                )
            unused += ["/".join(name) for name in each.scans.names() if name not in owners]
        mistakes.raise_if_any()
        if self._masks is not None:
            unused += self._masks.unused(relatives, self.doubt)
        return unused


def open_labels(
    labels: Sequence[Path],
    masks: Sequence[Path],
    boxes_from_masks: bool,
    columns: Columns | None = None,
    mistakes: Mistakes | None = None,
    doubt: Doubt | None = None,
    images: Sequence[Path] = (),
) -> LabelIndex:
    """Open files and folders of labels, which are told apart by their content.

    Args:
        labels: CSV; COCO boxes; dataset.json of the Decathlon or nnU-Net; JSON with the names of mask values ({'1':
            'liver'}, or the same for each mask file); folders of Pascal VOC XML.
        masks: folders of masks that are named as their scans, single mask files, or patterns; see `pairing`.
        boxes_from_masks: each connected component of a mask becomes a box.
        columns: columns of CSV files that are named rather than found.
        mistakes: keeps those of single lines of CSV files, to be raised with others; None: they are raised at once.
        doubt: the words of the command, for names with two readings.
        images: the inputs. Where they and `masks` are patterns, '*' stands for the same text in a scan and its mask.

    Raises:
        UserError: a file is missing or of no known form, a column that was asked for is in none of them, or a label
            looks like the name of a person.
    """
    listed = {file.resolve() for path in labels for file in _files(Path(path))}
    label_index = LabelIndex(listed=listed, doubt=doubt or Doubt())
    names: dict[str, Names] = {}
    there: list[str] = []
    others: list[tuple[Path, Any]] = []
    for path in map(Path, labels):
        content = load_json(path, "the labels ") if path.suffix.lower() == ".json" else None
        given = None if content is None or is_dataset(content) else as_names(content)
        if given is not None:
            names |= given
        else:
            others.append((path, content))
    for path, content in others:
        found, claimed = _found(path, content, columns, mistakes)
        there += found.columns
        if columns is not None and not columns.insist:
            _check_no_persons(path, found)
        _file(label_index, path, found, claimed, boxes_from_masks)
    _check_known(columns.asked if columns else (), there)
    if masks:
        label_index._masks = MaskSet([Path(path) for path in masks], names, boxes_from_masks, images, label_index.real)
        label_index.claimed |= label_index._masks.claimed
    if boxes_from_masks and not label_index.claimed:
        raise UserError("boxes from masks are wanted, but no masks are given")
    if names and not label_index.claimed:
        raise UserError("names of mask values are given, but no masks")
    return label_index


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.xml")) if path.is_dir() else [path]


def _check_known(asked: Sequence[str], there: Sequence[str]) -> None:
    """UserError for a column that was asked for and stands in no list."""
    for wanted in asked:
        if wanted.strip().lower() not in {column.strip().lower() for column in there}:
            lists = f"their columns are: {', '.join(dict.fromkeys(there))}" if there else "there is no list (CSV)"
            raise UserError(f"--label-columns {wanted}: no list of --labels has such a column; {lists}")


def _check_no_persons(path: Path, found: FoundLabels) -> None:
    """UserError where a label of a box, or the name of a mask's value, is that of a person; it is not repeated."""
    refs = [ref for _, ref in found.refs]
    texts = {box.label for ref in refs for box in ref.boxes or ()} | {
        text for ref in refs for text in ref.names.values()
    }
    telling = {telling_value(text) for text in texts} & {PERSONS, MAIL}
    if telling:
        raise UserError(f"{path}: a label of its boxes or masks looks as if it held {min(telling)}; {INSIST}")


def _found(
    path: Path, content: Any, columns: Columns | None, mistakes: Mistakes | None
) -> tuple[FoundLabels, set[Path]]:
    if path.is_dir() or path.suffix.lower() == ".xml":
        if not (found := read_voc(path)).refs:
            raise UserError(f"no Pascal VOC file (.xml) in the folder of labels '{path}'; masks go with --masks")
        return found, set()
    if not path.exists():
        raise UserError(f"the labels '{path}' do not exist")
    if content is None:
        return read_table(path, columns, mistakes), set()
    if is_coco(content):
        return read_coco(path, content), set()
    if is_dataset(content):
        return read_dataset(path, content)
    raise UserError(f"{path} is neither COCO boxes, a dataset.json, names of mask values, nor a list of cases")


def _file(label_index: LabelIndex, path: Path, found: FoundLabels, claimed: set[Path], boxes_from_masks: bool) -> None:
    listed = _LabelList(str(path))
    for name, ref in found.refs:
        listed.scans.add(name, replace(ref, boxes_from_mask=boxes_from_masks and ref.mask is not None))
    label_index._lists.append(listed)
    label_index.claimed |= claimed
    label_index.notes += found.notes
    for reason, count in found.left_out.items():
        label_index.left_out[reason] = label_index.left_out.get(reason, 0) + count


def _merged(one: LabelRef, other: LabelRef, relative: str) -> LabelRef:
    for name, first, second in (("classes", one.classes, other.classes), ("targets", one.targets, other.targets)):
        for key in first.keys() & second.keys():
            if first[key] != second[key]:
                raise UserError(f"two lists give '{relative}' different {name} for '{key}'")
    if one.boxes is not None and other.boxes is not None:
        raise UserError(f"two lists hold boxes of '{relative}'")
    if one.mask is not None and other.mask is not None:
        raise UserError(f"two masks of '{relative}' are given")
    boxed, masked = (one if one.boxes is not None else other), (one if one.mask is not None else other)
    return LabelRef(
        mask=masked.mask,
        more_masks=masked.more_masks,
        names=one.names | other.names,
        boxes=boxed.boxes,
        boxes_from_mask=masked.boxes_from_mask,
        flat_boxes=boxed.flat_boxes,
        size=boxed.size,
        classes=one.classes | other.classes,
        targets=one.targets | other.targets,
    )
