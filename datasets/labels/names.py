"""How a label finds its scan: by file name, and by as much of the path as both know."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from scanforge.configs.errors import UserError
from scanforge.datasets.readers import SUFFIXES, suffix_of

T = TypeVar("T")


def parts_of(name: str) -> tuple[str, ...]:
    """A path without its suffix and without nnU-Net's `_0000` of the first channel, as parts: 'a/x_0000.png' is (a, x).

    Only the suffix of a scan is cut off: identifiers hold dots of their own.
    """
    parts = name.strip().replace("\\", "/").split("/")
    *folders, last = [part for part in parts if part not in ("", ".", "..")] or [""]
    suffix = suffix_of(last)
    if suffix in SUFFIXES:
        last = last[: len(last) - len(suffix)]
    return (*folders, last.removesuffix("_0000"))


def agree(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts two paths share, counted from the end, where the shorter is the end of the longer; else 0."""
    shared = min(len(one), len(other))
    return shared if one[-shared:] == other[-shared:] else 0


@dataclass
class ByName(Generic[T]):
    """Values by name of their scan. Two values of one name are told apart by their folders."""

    _found: dict[str, list[tuple[tuple[str, ...], T]]] = field(default_factory=dict)

    def add(self, name: str, value: T) -> None:
        """Files `value` under the (path) name of a scan."""
        parts = parts_of(name)
        self._found.setdefault(parts[-1], []).append((parts, value))

    def get(self, relative: str) -> tuple[tuple[str, ...], T] | None:
        """(name, value) for the scan at `relative`; UserError where two fit equally well."""
        parts = parts_of(relative)
        fitting = [(agree(parts, name), name, value) for name, value in self._found.get(parts[-1], [])]
        fitting = sorted((each for each in fitting if each[0]), key=lambda each: -each[0])
        if len(fitting) > 1 and fitting[0][0] == fitting[1][0]:
            names = " and ".join(sorted("/".join(name) for _, name, _ in fitting[:2]))
            raise UserError(f"two labels fit '{relative}': {names}; name them by more of the path")
        return fitting[0][1:] if fitting else None

    def names(self) -> Iterable[tuple[str, ...]]:
        """All names, as parts."""
        return (parts for values in self._found.values() for parts, _ in values)
