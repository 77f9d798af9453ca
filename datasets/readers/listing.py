"""Names of many files in little memory: those of a series, and those below the inputs, folder by folder."""

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

_FEW = 8  # names that are not worth packing


class PackedNames(Sequence[str]):
    """Names that are kept compressed, but for the first, by which a source is known.

    A million series of 250 slices have names of some 30 GB, and much less in common.
    """

    __slots__ = ("_count", "_first", "_packed")

    def __init__(self, names: Sequence[str]) -> None:
        self._first, self._count, self._packed = names[0], len(names), pack(names)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        """One name, or a tuple of several."""
        return self._first if place == 0 else unpack(self._packed)[place]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(unpack(self._packed))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedNames):
            return self._packed == other._packed
        return unpack(self._packed) == other

    def __hash__(self) -> int:
        return hash(unpack(self._packed))

    def __repr__(self) -> str:
        return f"PackedNames({self._first!r} and {self._count - 1} more)"


def packed_names(names: Sequence[str]) -> Sequence[str]:
    """The names as they are where they are few, else packed."""
    return tuple(names) if len(names) < _FEW else PackedNames(names)


def pack(names: Iterable[str]) -> bytes:
    """Names, of which none holds a zero byte, compressed."""
    return zlib.compress("\0".join(names).encode("utf-8", "surrogateescape"), 1)


def unpack(packed: bytes) -> tuple[str, ...]:
    """What `pack` was given."""
    return tuple(zlib.decompress(packed).decode("utf-8", "surrogateescape").split("\0"))


class FileListing:
    """Files below some roots, each once, in an order that depends on their names alone."""

    def __init__(self) -> None:
        self._packed: dict[tuple[Path, str], tuple[bytes, int]] = {}  # by root and folder below it, '' for the root
        self._loose: dict[tuple[Path, str], set[str]] = {}

    def add_folder(self, root: Path, folder: str, names: Sequence[str]) -> None:
        """Files of one folder; it may be given again, by another input."""
        place = (root, folder)
        if place in self._packed or place in self._loose:
            for name in names:
                self.add(root, f"{folder}/{name}" if folder else name)
        elif names:
            self._packed[place] = pack(sorted(names)), len(names)

    def add(self, root: Path, relative: str) -> None:
        """One file."""
        folder, _, name = relative.rpartition("/")
        place = (root, folder)
        if place not in self._loose:
            self._loose[place] = set(unpack(self._packed.pop(place)[0])) if place in self._packed else set()
        self._loose[place].add(name)

    def kept(self, keep: Callable[[Path, str], bool]) -> "FileListing":
        """The files of which `keep`, called with root and path below it, is true."""
        found = FileListing()
        for root, folder in self._folders():
            head = f"{folder}/" if folder else ""
            found.add_folder(root, folder, [name for name in self._names(root, folder) if keep(root, head + name)])
        return found

    def __len__(self) -> int:
        return sum(self._size(*place) for place in self._folders())

    def __iter__(self) -> Iterator[tuple[Path, str]]:
        return ((root, relative) for root in self.roots() for relative in self.below(root))

    def roots(self) -> list[Path]:
        """The roots that have files."""
        return sorted({root for root, _ in self._folders()})

    def below(self, root: Path) -> "FilesBelow":
        """The files of one root, by their path below it."""
        return FilesBelow(self, root)

    def _folders(self) -> list[tuple[Path, str]]:
        return sorted([*self._packed, *self._loose])

    def _size(self, root: Path, folder: str) -> int:
        place = (root, folder)
        return self._packed[place][1] if place in self._packed else len(self._loose[place])

    def _names(self, root: Path, folder: str) -> Sequence[str]:
        place = (root, folder)
        return unpack(self._packed[place][0]) if place in self._packed else sorted(self._loose[place])


class FilesBelow(Collection[str]):
    """The files of one root of a listing: paths below it, folder by folder."""

    def __init__(self, listing: FileListing, root: Path) -> None:
        self._listing = listing
        self._folders = [place for place in listing._folders() if place[0] == root]

    def __len__(self) -> int:
        return sum(self._listing._size(*place) for place in self._folders)

    def __iter__(self) -> Iterator[str]:
        for root, folder in self._folders:
            names = self._listing._names(root, folder)
            yield from ((f"{folder}/{name}" for name in names) if folder else names)

    def __contains__(self, relative: object) -> bool:
        return any(each == relative for each in self)
