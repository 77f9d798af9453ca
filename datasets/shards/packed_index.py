"""The index of a shard of kept JPEGs, compressed: else it would be a fifth of small images.

It is gzip of several members, each of which holds `PART` bytes of the text. `zcat` shows the whole, and a reader
decompresses what an entry lies in. Both copies, in the tar and beside it, are compressed.
"""

import zlib
from collections.abc import Callable

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError

PART = 1 << 14  # bytes of the text of a member
_GZIP = 31  # zlib's word for a gzip header and the largest window
_HEAD = b"\x1f\x8b"
_MOST = 100  # times its compressed size, and no index is longer


def pack_index(text: bytes) -> bytes:
    """The text of an index as gzip. The same version of zlib gives the same bytes."""
    parts = []
    for begin in range(0, len(text), PART):
        packer = zlib.compressobj(9, zlib.DEFLATED, _GZIP)
        parts.append(packer.compress(text[begin : begin + PART]) + packer.flush())
    return b"".join(parts)


def is_packed(content: bytes) -> bool:
    """Whether the content of an index is compressed; that of data sets without kept JPEGs is not."""
    return content.startswith(_HEAD)


def index_text(content: bytes, name: str) -> bytes:
    """The text of an index, compressed or not; UserError names `name` where it is damaged."""
    return unpack_index(content, name)[0] if is_packed(content) else content


def unpack_index(content: bytes, name: str) -> tuple[bytes, NDArray[np.int64]]:
    """The text of a compressed index, and where its members begin and the last one ends.

    Raises:
        UserError: it is damaged; the text names `name`.
    """
    parts, places, size = [], [0], 0
    while places[-1] < len(content):
        try:
            part, rest = _unpacked(memoryview(content)[places[-1] :])
        except ValueError as error:
            raise UserError(f"{name} is damaged ({error}); build the data set again") from error
        places.append(len(content) - rest)
        parts.append(part)
        size += len(part)
        last = places[-1] == len(content)
        if size > _MOST * len(content) or (not last and len(part) < PART):
            raise UserError(f"{name} is damaged (its compressed parts are of other sizes); build the data set again")
    return b"".join(parts), np.array(places, np.int64)


def _unpacked(content: memoryview) -> tuple[bytes, int]:
    """The text of the first member, and how many bytes follow that member."""
    opened = isal_zlib.decompressobj(_GZIP)
    try:
        text = opened.decompress(content, PART + 1)
    except isal_zlib.error as error:  # type: ignore[misc]  # a class, which its stub does not say
        raise ValueError("its compressed parts cannot be read") from error
    if not opened.eof or len(text) > PART:
        raise ValueError("its compressed parts are of other sizes")
    return text, len(opened.unused_data)


def part_of_text(begin: int, end: int, places: NDArray[np.int64], fetch: Callable[[int, int], bytes]) -> bytes:
    """Bytes of the text of a compressed index.

    Args:
        begin, end: of the text.
        places: where members begin, see `unpack_index`.
        fetch: reads bytes of the compressed index: begin, end.

    Raises:
        ValueError: it is damaged.
    """
    first, last = begin // PART, (end - 1) // PART
    base = int(places[first])
    content = memoryview(fetch(base, int(places[last + 1])))
    parts = [_unpacked(content[int(places[n]) - base : int(places[n + 1]) - base])[0] for n in range(first, last + 1)]
    return b"".join(parts)[begin - first * PART : end - first * PART]
