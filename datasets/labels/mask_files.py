"""The masks of a build or a study: which files are masks, and of which scans."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.masks import Names, masks_below, names_of
from scanfoundry.datasets.labels.pairing.candidates import MaskFile, Pairs
from scanfoundry.datasets.labels.pairing.doubt import Doubt
from scanfoundry.datasets.labels.pairing.names import whole_parts_of
from scanfoundry.datasets.labels.pairing.pairing import pair
from scanfoundry.datasets.labels.pairing.roles import masks_among
from scanfoundry.datasets.labels.pairing.vocabulary import is_marked
from scanfoundry.datasets.readers import find_scans
from scanfoundry.datasets.readers.labels import LabelRef
from scanfoundry.datasets.readers.paths import RealPaths, cases_of, split_pattern


class MaskSet:
    """Folders of masks and single ones, as one: which files are masks, and of which scans.

    A mask is called as its scan (x.png), or as its scan with a word for a mask before or behind (x_mask, gt_x); see
    `pairing` for what else there is. Numbered ones (x_mask.png, x_mask_1.png: one file per lesion) are united.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        names: dict[str, Names],
        boxes: bool,
        images: Sequence[Path] = (),
        real: RealPaths | None = None,
    ) -> None:
        """`boxes`: one around each connected part is wanted; `images`: the inputs, which may be patterns, too.

        Raises:
            UserError: a folder is not there, or holds no readable file.
        """
        self._real = real or RealPaths()
        self.title = " and ".join(map(str, folders))
        self._stated = _stated([path for path in folders if split_pattern(path)])
        self._patterns = [split[1] for path in images if (split := split_pattern(path))]
        folders = [path for path in folders if not split_pattern(path)]
        self.left_out: dict[str, int] = {}
        self._names, self._boxes = names, boxes
        self._files: dict[Path, list[str]] = {}
        for path in folders:
            root, files = masks_below(path)
            self._files[root] = [*self._files.get(root, []), *files]
        # As if scans lay in each folder: whoever knows the scans says so by `claim`.
        self._take({root: masks_among(files, [], True) for root, files in self._files.items()})
        self._pairs: Pairs | None = None

    def _take(self, masks: Mapping[Path, Sequence[str]]) -> None:
        self._masks = [MaskFile(root, file) for root, files in masks.items() for file in files]
        self.claimed = {self._real.of(mask.root, mask.relative) for mask in (*self._masks, *self._stated.values())}

    def claim(self, files: Sequence[tuple[Path, str]], others: int, doubt: Doubt) -> None:
        """Tells masks from scans by all files (root, path below it) of the inputs and the number of files that may be
        DICOM.

        Raises:
            UserError: nothing tells masks from scans.
        """
        real = self._real.of
        resolved = {real(root, relative): relative for root, relative in files}
        ours = {real(root, file) for root, each in self._files.items() for file in each}
        scans = [relative for path, relative in resolved.items() if path not in ours]
        roots = {root.resolve() for root, _ in files}
        masks = {}
        for root, each in self._files.items():
            inside = [file for file in each if real(root, file) in resolved]
            outside = [file for file in each if real(root, file) not in resolved]
            if outside and inside and masks_among(inside, [], True) == inside:
                masks[root] = masks_among(outside, [*scans, *inside], False)
            else:
                shared = bool(inside) and (root.resolve() in roots or not (scans or others))
                masks[root] = masks_among(each, scans, shared)
        self._take(masks)
        if self._masks and files and not others and self.claimed >= resolved.keys():
            one, other = (*resolved.values(), *resolved.values())[:2]
            advice = self._knowing(doubt, [*resolved.values()]).advice(one, self._masks[-1].path)
            both = f"'{one}', '{other}'"
            raise UserError(
                f"nothing tells images from masks in {self.title} ({both}): {advice}, or the other way round"
            )

    def _knowing(self, doubt: Doubt, relatives: Sequence[str]) -> Doubt:
        return replace(doubt, scans_known=relatives, masks_known=[(mask.root, mask.relative) for mask in self._masks])

    def pair(self, relatives: Sequence[str], doubt: Doubt) -> None:
        """Finds the masks of all scans.

        Raises:
            UserError: their names have two readings.
        """
        doubt = self._knowing(doubt, relatives)
        self._pairs = pairs = pair(relatives, self._masks, doubt)
        found = [mask for masks in pairs.of.values() for mask in masks]
        if found and all(is_marked(mask.parts[-1]) for mask in found):
            others = [mask for mask in pairs.left if not is_marked(mask.parts[-1])]
            pairs.left = [mask for mask in pairs.left if mask not in others]
            if others:
                self.left_out["files among the masks that are called as none"] = len(others)
        left = dict(self._stated)
        for relative, case in self._cases(relatives) if self._stated else ():
            if (mask := self._stated.get(case)) is None:
                continue
            if case not in left or relative in pairs.of:
                other = pairs.of[relative][0].path if relative in pairs.of else mask.path
                doubt.masks(relative, other, mask.path)
            pairs.of[relative] = (left.pop(case),)
        pairs.left += left.values()

    def _cases(self, relatives: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(path, name of the case) of the scans, by the patterns of the inputs, else by their paths."""
        named = {
            relative: case for pattern in self._patterns for case, relative in cases_of(pattern, relatives).items()
        }
        for relative in relatives:
            yield relative, named.get(relative) or "/".join(whole_parts_of(relative))

    def of(self, relative: str) -> LabelRef | None:
        """The mask or masks of the scan at `relative`. Before `pair`, by that name alone."""
        pairs = self._pairs or pair([relative], self._masks, Doubt(), whole=False)
        if not (masks := pairs.of.get(relative)):
            return None
        first, *more = (mask.path for mask in masks)
        names = names_of(self._names, masks[0].relative)
        return LabelRef(mask=first, more_masks=tuple(more), names=names, boxes_from_mask=self._boxes)

    def knows(self, name: str) -> bool:
        """Whether a mask is of a case of that name, whose channels are numbered."""
        return self._pairs is not None and whole_parts_of(name) in self._pairs.cases

    def unused(self, relatives: Sequence[str], doubt: Doubt) -> list[str]:
        """The names of masks that are of no scan.

        Raises:
            UserError: all masks are of no scan.
        """
        if self._pairs is None:
            self.pair(relatives, doubt)
        assert self._pairs is not None
        if not self._pairs.of:
            mask = self._pairs.left[0]
            raise UserError(
                f"{self.title}: none of its labels is of a scan here, '{mask.relative}' not of '{relatives[0]}': "
                "call each mask as its scan (x.png), or as it and a mark (x_mask.png); else "
                f"{self._knowing(doubt, relatives).advice(relatives[0], mask.path)}"
            )
        return ["/".join(mask.parts) for mask in self._pairs.left]

    def advice(self, relatives: Sequence[str], doubt: Doubt) -> str:
        """What to type where the masks of no scan are none, by patterns that leave them out; '' where none do."""
        if self._pairs is None or not self._pairs.of:
            return ""
        scan, (mask, *_) = next(iter(self._pairs.of.items()))
        knowing = self._knowing(doubt, relatives)
        found = knowing.patterns(scan, mask.path)
        if found is None or not {*_stated([found[1]]).values()}.isdisjoint(self._pairs.left):
            return ""
        return knowing.advice(scan, mask.path)


def _stated(patterns: Sequence[Path]) -> dict[str, MaskFile]:
    """Masks by what '*' stands for in the patterns; UserError where one meets nothing, or a case twice."""
    stated: dict[str, MaskFile] = {}
    for path in patterns:
        root, pattern = split_pattern(path) or (path, "")
        files = [relative for _, relative in find_scans([root])] if root.is_dir() else []
        found = {case: MaskFile(root.absolute(), file) for case, file in cases_of(pattern, files).items()}
        if not found:
            raise UserError(f"no readable mask is called as '{path}'")
        if twice := stated.keys() & found.keys():
            raise UserError(f"two masks of the case '{min(twice)}' are called as {' and '.join(map(str, patterns))}")
        stated |= found
    return stated
