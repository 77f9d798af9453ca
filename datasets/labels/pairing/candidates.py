"""Scans and masks by their names, and what has been paired so far."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from scanfoundry.datasets.labels.pairing.doubt import Doubt
from scanfoundry.datasets.labels.pairing.names import Parts, agree, whole_parts_of
from scanfoundry.datasets.labels.pairing.vocabulary import folder_kind, rest_of, tokens_of
from scanfoundry.datasets.readers import SUFFIXES, suffix_of


@dataclass(frozen=True)
class MaskFile:
    """A mask at `relative` below `root`, the folder of masks that was given."""

    root: Path
    relative: str

    @cached_property
    def parts(self) -> Parts:
        """See `names.whole_parts_of`."""
        return whole_parts_of(self.relative)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root / self.relative


@dataclass(frozen=True)
class ScanNames:
    """A scan at `relative` below its input, and the names by which a mask may call it: for a series, its folders."""

    relative: str
    names: tuple[Parts, ...]
    single: bool  # a file of its own

    @classmethod
    def of(cls, relative: str) -> "ScanNames":
        """The scan at `relative`; a file without a reader's suffix is of a DICOM series."""
        parts = whole_parts_of(relative)
        if suffix_of(relative) in SUFFIXES or len(parts) == 1:
            return cls(relative, (parts,), True)
        return cls(relative, tuple(parts[:depth] for depth in range(len(parts) - 1, 0, -1)), False)

    @property
    def folder(self) -> Parts:
        """The folder of the scan's files."""
        return self.names[0][:-1] if self.single else self.names[0]


@dataclass
class Pairs:
    """Masks by the scan's path; the cases whose numbered channels have a mask; masks of no scan."""

    of: dict[str, tuple[MaskFile, ...]] = field(default_factory=dict)
    cases: set[Parts] = field(default_factory=set)
    left: list[MaskFile] = field(default_factory=list)


def plain(parts: Parts) -> Parts:
    """Without the folders that say what they hold: (images, p1, x) and (masks, p1, x) are both (p1, x)."""
    return (*plain_folders(parts[:-1]), parts[-1])


def plain_folders(folders: Iterable[str]) -> Parts:
    """'imagesTr' is 'tr', 'masks' is left out."""
    kept = ("_".join(rest_of(folder)) if folder_kind(folder) else folder for folder in folders)
    return tuple(folder for folder in kept if folder)


@dataclass(frozen=True)
class _DistinctName:
    """What tells a name apart from others without common words; where nothing does ('p1/mask'), its folder's name."""

    rest: Parts
    folders: Parts
    by_folder: bool

    @classmethod
    def of(cls, parts: Parts) -> "_DistinctName":
        folders, rest = plain_folders(parts[:-1]), rest_of(parts[-1])
        if not rest and folders:
            return cls(tokens_of(folders[-1]), folders[:-1], True)
        return cls(rest, folders, False)

    def near(self, other: "_DistinctName") -> bool:
        """Whether the folders may be the same. One more of a name that is not its folder's tells them apart."""
        deeper = len(self.folders) - len(other.folders)
        if (self.by_folder and deeper < 0) or (other.by_folder and deeper > 0):
            return False
        return not self.folders or not other.folders or agree(self.folders, other.folders) > 0


class PathIndex:
    """Numbers by path, to look up by the end of the path."""

    def __init__(self, entries: Iterable[tuple[Parts, int]]) -> None:
        self._by_last: dict[str, list[tuple[Parts, int]]] = defaultdict(list)
        for parts, number in entries:
            if parts:
                self._by_last[parts[-1]].append((parts, number))

    def best(self, name: Parts) -> list[int]:
        """The numbers whose paths agree with `name` in the most parts, each once."""
        if not name or name[-1] not in self._by_last:
            return []
        fitting = [(agree(parts, name), number) for parts, number in self._by_last[name[-1]]]
        most = max(shared for shared, _ in fitting)
        return list(dict.fromkeys(number for shared, number in fitting if shared == most > 0))


class PairingState:
    """The scans and masks to be paired, and the pairs that have been found."""

    def __init__(self, scans: Sequence[ScanNames], masks: Sequence[MaskFile], doubt: Doubt) -> None:
        self.scans, self.doubt = scans, doubt
        self.pairs = Pairs(left=list(masks))
        self.found: dict[int, list[MaskFile]] = {}  # by number of the scan
        self.first_of: dict[Parts, int] = {}  # the first channel of cases with a mask

    @cached_property
    def by_name(self) -> tuple[PathIndex, PathIndex]:
        """The scans by path, and by path without folders that say what they hold."""
        names = [(name, number) for number, scan in enumerate(self.scans) for name in scan.names]
        return PathIndex(names), PathIndex((plain(name), number) for name, number in names)

    def called(self, name: Parts) -> list[int]:
        """The scans of that name."""
        whole, bare = self.by_name
        return whole.best(name) or bare.best(plain(name))

    def of_case(self, name: Parts) -> list[int]:
        """The first channel of the case of that name."""
        return [number for case, number in self.first_of.items() if agree(plain(case), plain(name))]

    @cached_property
    def _by_rest(self) -> dict[Parts, list[tuple["_DistinctName", int]]]:
        found: dict[Parts, list[tuple[_DistinctName, int]]] = defaultdict(list)
        for number, scan in enumerate(self.scans):
            for name in scan.names:
                each = _DistinctName.of(name)
                found[each.rest].append((each, number))
        return found

    def alike(self, mask: MaskFile) -> list[int]:
        """The scans whose name is that of the mask but for words for masks and images."""
        own = _DistinctName.of(mask.parts)
        near = [number for other, number in self._by_rest.get(own.rest, []) if own.near(other)]
        return list(dict.fromkeys(near)) if own.rest else []

    def keep(self, found: Mapping[int, Sequence[MaskFile]]) -> None:
        """Add pairs to those that have been found."""
        taken = {mask for masks in found.values() for mask in masks}
        for number, masks in found.items():
            self.found[number] = [*self.found.get(number, []), *masks]
            self.pairs.of[self.scans[number].relative] = tuple(self.found[number])
        self.pairs.left = [mask for mask in self.pairs.left if mask not in taken]

    def united(self, scan: int, found: Sequence[tuple[int, MaskFile]]) -> list[MaskFile]:
        """The masks of a scan in the order of their numbers (-1: none).

        Raises:
            UserError: two masks have the same number.
        """
        if scan in self.found:
            self.doubt.masks(self.shown(scan), self.found[scan][0].path, found[0][1].path)
        ordered = sorted(found, key=lambda each: (each[0], each[1].relative))
        for one, other in pairwise(ordered):
            if one[0] == other[0]:
                self.doubt.masks(self.shown(scan), one[1].path, other[1].path)
        return [mask for _, mask in ordered]

    def shown(self, number: int) -> str:
        """The path of a scan."""
        return self.scans[number].relative
