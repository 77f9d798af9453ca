"""A survey of many files that may be DICOM: by portions, kept on disk, and never all headers in one process.

Workers read the headers of a portion of files and write what grouping needs of them into a file, divided by a hash of
patient, study and series. Then they group one part of the hash after the other, over all portions: a series and all
copies of its slices lie in one part, wherever its files are. A survey that is started again reads no header twice, as
long as size and time of its file are the same; several processes, on any machine, may share the work.
"""

import hashlib
import json
import os
import secrets
import struct
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.discovery.quarantine import Quarantined, QuarantineKind
from scanfoundry.datasets.discovery.sources import regular_files, shown
from scanfoundry.datasets.readers import Source
from scanfoundry.datasets.readers.listing import packed_names

if TYPE_CHECKING:
    from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader

PORTION = 500  # files of which a worker reads the headers at a time
_TOGETHER = 20_000  # files that are grouped at a time
_LARGE = 2000  # portions and parts from which on both grow with the survey
_HEAD = struct.Struct("<Q")  # bytes of the head of a portion's file

Found = tuple[list[Source], list[Quarantined]]
Piece = tuple[Path, int, int]  # a portion's file, and where the headers of one part lie in it


@dataclass(frozen=True)
class Portion:
    """Files to read the headers of.

    Attributes:
        root: folder of the input.
        names: paths below it.
        parts: into how many parts the headers are divided.
        kept: folder of the survey.
    """

    root: Path
    names: tuple[str, ...]
    parts: int
    kept: Path

    @property
    def place(self) -> Path:
        """A folder to name where a process dies of it."""
        return (self.root / self.names[0]).parent

    def run(self) -> tuple[list[Quarantined], dict[int, Piece]]:
        """Read the headers, or find them read: lines for what is no file, and where the headers of each part lie."""
        listing = "\0".join([str(self.root.resolve()), str(self.parts), *self.names])
        path = self.kept / f"{hashlib.sha256(os.fsencode(listing)).hexdigest()[:32]}.headers"
        state = self._state()
        head, size = _head_of(path)
        if head is None or head["state"] != state:
            head = self._read(path, state)
            size = len(_packed_head(head))
        pieces = {int(part): (path, size + begin, length) for part, (begin, length) in head["pieces"].items()}
        return [Quarantined(**line) for line in head["none"]], pieces

    def _state(self) -> str:
        """What changes where a file does."""
        digest = hashlib.sha256()
        for name in self.names:
            try:
                status = os.stat(self.root / name)
                digest.update(struct.pack("<QQq", status.st_mode, status.st_size, status.st_mtime_ns))
            except OSError as error:
                digest.update(f"{error.errno}".encode())
        return digest.hexdigest()

    def _read(self, path: Path, state: str) -> dict[str, Any]:
        from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers

        none: list[Quarantined] = []
        files = regular_files(((self.root, name) for name in self.names), none)
        divided: dict[int, list[list[Any]]] = defaultdict(list)
        for (_, name), header in zip(files, scan_headers(self.root / name for _, name in files), strict=True):
            divided[part_of(header, self.parts)].append(_row_of(header, name))
        content, pieces = b"", {}
        for part, rows in sorted(divided.items()):
            packed = zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 1)
            pieces[str(part)] = (len(content), len(packed))
            content += packed
        head = {"state": state, "none": [line.model_dump() for line in none], "pieces": pieces}
        write_shared(path, _packed_head(head) + content)
        return head


@dataclass(frozen=True)
class Group:
    """The headers of one part, to group to sources."""

    root: Path
    pieces: tuple[Piece, ...]
    kept: Path

    @property
    def place(self) -> Path:
        """A folder to name where a process dies of it."""
        return self.root

    def run(self) -> Found:
        """Group them, or find them grouped."""
        packed = [_bytes_at(*piece) for piece in self.pieces]
        digest = hashlib.sha256(os.fsencode(self.root.resolve()))
        for piece in packed:
            digest.update(hashlib.sha256(piece).digest())
        path = self.kept / f"{digest.hexdigest()[:32]}.sources"
        if not path.exists():
            write_shared(path, self._grouped(packed))
        sources, refusals = json.loads(zlib.decompress(path.read_bytes()))
        return (
            [Source(self.root, kind, identity, packed_names(names), *rest) for kind, identity, names, *rest in sources],
            lines_of(refusals),
        )

    def _grouped(self, packed: Iterable[bytes]) -> bytes:
        from scanfoundry.datasets.readers.dicom.grouping import group

        headers = [_header_of(row, self.root) for piece in packed for row in json.loads(zlib.decompress(piece))]
        sources, refusals = group(headers, self.root)
        rows = [
            (each.kind, each.identity, list(each.files), each.size, each.modified, each.patient, each.study)
            for each in sources
        ]
        return zlib.compress(json.dumps((rows, refusals)).encode(), 1)


def portions(root: Path, names: Collection[str], kept: Path, share: float) -> Iterator[Portion]:
    """All files of a root, in their order, from a share of them on and then the others."""
    size = max(PORTION, min(10 * PORTION, len(names) // _LARGE))
    parts = -(-len(names) // max(_TOGETHER, min(5 * _TOGETHER, len(names) // _LARGE)))
    first = int(share * len(names)) // size * size
    for begin, end in ((first, None), (0, first)):
        some = islice(names, begin, end)
        while portion := tuple(islice(some, size)):
            yield Portion(root, portion, parts, kept)


def part_of(header: "FileHeader", parts: int) -> int:
    """The part of a header: the same for all that may be of one series, or copies of one instance."""
    text = "\0".join((header.patient, header.study, header.series))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") % parts


def lines_of(refusals: Iterable[Sequence[str]]) -> list[Quarantined]:
    """Lines for the files that are of no source."""
    return [
        Quarantined(path=shown(path), reason=reason, kind=cast(QuarantineKind, kind)) for path, reason, kind in refusals
    ]


def write_shared(path: Path, content: bytes) -> None:
    """Write a file that another process, on another machine, may write at the same time with the same content."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    write_bytes(draft, content)
    os.replace(draft, path)


def _names() -> list[str]:
    """The fields of a header that grouping needs. The attributes, half of its bytes, are read again with the pixels."""
    from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader

    return [each.name for each in fields(FileHeader) if each.name not in ("path", "attributes")]


def _row_of(header: "FileHeader", name: str) -> list[Any]:
    return [name, *(getattr(header, each) for each in _names())]


def _header_of(row: Sequence[Any], root: Path) -> "FileHeader":
    from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader

    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in zip(_names(), row[1:], strict=True)
    }
    return FileHeader(root / row[0], **values)


def _packed_head(head: dict[str, Any]) -> bytes:
    text = zlib.compress(json.dumps(head).encode(), 1)
    return _HEAD.pack(len(text)) + text


def _head_of(path: Path) -> tuple[dict[str, Any] | None, int]:
    """The head of a portion's file and its length; None where there is no such file, or a damaged one."""
    try:
        with path.open("rb") as file:
            (length,) = _HEAD.unpack(file.read(_HEAD.size))
            return json.loads(zlib.decompress(file.read(length))), _HEAD.size + length
    except (FileNotFoundError, struct.error, zlib.error, ValueError):  # there is none, or it is damaged
        return None, 0


def _bytes_at(path: Path, begin: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(length)
