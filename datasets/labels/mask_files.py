"""The masks of a build or a study: which files are masks, and of which scans."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scanforge.configs.errors import UserError
from scanforge.datasets.labels.candidates import MaskFile, Pairs
from scanforge.datasets.labels.doubt import Doubt
from scanforge.datasets.labels.labels import LabelRef
from scanforge.datasets.labels.masks import Names, masks_below, names_of
from scanforge.datasets.labels.names import whole_parts_of
from scanforge.datasets.labels.pairing import pair
from scanforge.datasets.labels.roles import masks_among
from scanforge.datasets.labels.words import is_marked


class MaskSet:
    """Folders of masks and single ones, as one: which files are masks, and of which scans.

    A mask is called as its scan (x.png), or as its scan with a word for a mask before or behind (x_mask, gt_x); see
    `pairing` for what else there is. Numbered ones (x_mask.png, x_mask_1.png: one file per lesion) are united.
    """

    def __init__(self, folders: Sequence[Path], names: dict[str, Names], boxes: bool) -> None:
        """`boxes`: one around each connected part is wanted.

        UserError for a folder that is not there, or holds no readable file.
        """
        self.title = " and ".join(map(str, folders))
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
        self.claimed = {mask.path.resolve() for mask in self._masks}

    def claim(self, files: Sequence[tuple[Path, str]], others: int, doubt: Doubt) -> None:
        """Tells masks from scans by all files (root, path below it) of the inputs and the number of files that may be
        DICOM. UserError where nothing tells them apart."""
        resolved = {(root / relative).resolve(): relative for root, relative in files}
        ours = {(root / file).resolve() for root, each in self._files.items() for file in each}
        scans = [relative for path, relative in resolved.items() if path not in ours]
        roots = {root.resolve() for root, _ in files}
        masks = {}
        for root, each in self._files.items():
            inside = [file for file in each if (root / file).resolve() in resolved]
            outside = [file for file in each if (root / file).resolve() not in resolved]
            if outside and inside and masks_among(inside, [], True) == inside:
                masks[root] = masks_among(outside, [*scans, *inside], False)
            else:
                shared = bool(inside) and (root.resolve() in roots or not (scans or others))
                masks[root] = masks_among(each, scans, shared)
        self._take(masks)
        if files and not others and self.claimed >= resolved.keys():
            one, other = (*resolved.values(), *resolved.values())[:2]
            raise UserError(
                f"nothing tells images from masks in {self.title} ('{one}', '{other}'): "
                f"{doubt.advice(one, self._masks[0].path)}"
            )

    def pair(self, relatives: Sequence[str], doubt: Doubt) -> None:
        """Finds the masks of all scans; UserError where their names have two readings."""
        self._pairs = pairs = pair(relatives, self._masks, doubt)
        found = [mask for masks in pairs.of.values() for mask in masks]
        if found and all(is_marked(mask.parts[-1]) for mask in found):
            others = [mask for mask in pairs.left if not is_marked(mask.parts[-1])]
            pairs.left = [mask for mask in pairs.left if mask not in others]
            if others:
                self.left_out["files among the masks that are called as none"] = len(others)

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
        """The names of masks that are of no scan; UserError where all are."""
        if self._pairs is None:
            self.pair(relatives, doubt)
        assert self._pairs is not None
        if not self._pairs.of:
            raise UserError(f"{self.title}: none of its labels is of a scan here; names must agree up to the suffix")
        return ["/".join(mask.parts) for mask in self._pairs.left]
