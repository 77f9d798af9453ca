"""How a label finds its scan: by file name, and by as much of the path as both know."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.pairing.numbered import FIRST_CHANNEL
from scanfoundry.datasets.readers import SUFFIXES, suffix_of

T = TypeVar("T")
Parts = tuple[str, ...]


def stem_of(last: str) -> str:
    """A file name without its suffix, whatever its case. Only that of a scan is cut: identifiers hold dots."""
    suffix = suffix_of(last)
    return last[: len(last) - len(suffix)] if suffix in SUFFIXES else last


def whole_parts_of(name: str) -> Parts:
    """A path without its suffix, as parts, composed (NFC): 'a/x_0000.png' is (a, x_0000)."""
    parts = unicodedata.normalize("NFC", name.strip().replace("\\", "/")).split("/")
    *folders, last = [part for part in parts if part not in ("", ".", "..")] or [""]
    return (*folders, stem_of(last))


def parts_of(name: str) -> Parts:
    """A path without its suffix and without nnU-Net's `_0000` of the first channel, as parts: 'a/x_0000.png' is (a, x).

    Only the suffix of a scan is cut off: identifiers hold dots of their own.
    """
    parts = name.strip().replace("\\", "/").split("/")
    *folders, last = [part for part in parts if part not in ("", ".", "..")] or [""]
    return (*folders, stem_of(last).removesuffix(FIRST_CHANNEL))


def agree(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts two paths share, counted from the end, where the shorter is the end of the longer; else 0."""
    shared = min(len(one), len(other))
    return shared if one[-shared:] == other[-shared:] else 0


@dataclass
class ByName(Generic[T]):
    """Values by the name of their scan. Two values of one name are told apart by their folders.

    A value of 'x' is also of a scan 'x_0000', nnU-Net's first channel, where no scan is called 'x': see `keep`.
    """

    _found: dict[str, list[tuple[Parts, T]]] = field(default_factory=dict)
    _owned: set[Parts] = field(default_factory=set)

    def add(self, name: str, value: T) -> None:
        """Files `value` under the (path) name of a scan."""
        parts = whole_parts_of(name)
        self._found.setdefault(parts[-1], []).append((parts, value))

    def keep(self, relatives: Iterable[str]) -> None:
        """Values that are called exactly as one of these scans are of no other from now on."""
        for relative in relatives:
            parts = whole_parts_of(relative)
            self._owned |= {name for name, _ in self._found.get(parts[-1], []) if agree(parts, name)}

    def knows(self, relative: str) -> bool:
        """Whether a value is called exactly as the scan at `relative`."""
        parts = whole_parts_of(relative)
        return any(agree(parts, name) for name, _ in self._found.get(parts[-1], []))

    def get(self, relative: str) -> tuple[Parts, T] | None:
        """(name, value) for the scan at `relative`.

        Raises:
            UserError: two values fit equally well.
        """
        parts = whole_parts_of(relative)
        fitting = self._fitting(parts)
        if not fitting and parts[-1].endswith(FIRST_CHANNEL):
            case = (*parts[:-1], parts[-1].removesuffix(FIRST_CHANNEL))
            fitting = [each for each in self._fitting(case) if each[1] not in self._owned]
        if len(fitting) > 1 and fitting[0][0] == fitting[1][0]:
            names = " and ".join(sorted("/".join(name) for _, name, _ in fitting[:2]))
            raise UserError(f"two labels fit '{relative}': {names}; name them by more of the path")
        return fitting[0][1:] if fitting else None

    def _fitting(self, parts: Parts) -> list[tuple[int, Parts, T]]:
        """(shared parts, name, value) of the values that fit, the best first."""
        found = [(agree(parts, name), name, value) for name, value in self._found.get(parts[-1], [])]
        return sorted((each for each in found if each[0]), key=lambda each: -each[0])

    def names(self) -> Iterable[Parts]:
        """All names, as parts."""
        return (parts for values in self._found.values() for parts, _ in values)
