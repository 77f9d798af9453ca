"""Where the blocks of a large scan lie in its payload, and a checksum of each: a crop reads and checks what it touches.

The table is the member `<key>.blocks` of the tar: `blk1`, the shapes of a chunk and of a block (C, D, H, W), the 32
bytes that each blosc2 chunk begins with, and for each block of each chunk its first byte in the payload, its length,
and the crc32 of its bytes, all little-endian uint32. A chunk of zeros has no bytes, so its blocks have length 0.
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import blosc2
import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import DTypeLike, NDArray

Shape = tuple[int, ...]
WHOLE = 1 << 18  # bytes of a member that is read at once; of a larger one, only what a crop touches is
_MAGIC = b"blk1"
_HEAD = 32  # bytes that a chunk begins with: flags, then nbytes, blocksize, cbytes at 4, 8, 12; see blosc2's format
_COPIED = 0x02  # flag of a chunk whose blocks are not compressed, and follow each other without their places
_ZEROS = 1  # kind of a chunk of zeros, in bits 4 to 6 of byte 31
_GAP = 1 << 15  # bytes between blocks that are read along with them: cheaper than another read
Fetch = Callable[[int, int], bytes]  # of a payload: begin, length


class DamagedBlock(ValueError):
    """A block is not the one whose checksum was taken."""


@dataclass(frozen=True)
class BlockTable:
    """The blocks of one payload.

    Attributes:
        chunk: shape of a chunk (C, D, H, W).
        block: shape of a block.
        heads: (chunks, 32) uint8.
        places: (3, chunks, blocks of one) uint32: first byte, length, crc32.
    """

    chunk: Shape
    block: Shape
    heads: NDArray[np.uint8]
    places: NDArray[np.uint32]

    def to_bytes(self) -> bytes:
        """The content of the member."""
        shapes = np.array([self.chunk, self.block], "<u4").tobytes()
        return _MAGIC + shapes + self.heads.tobytes() + self.places.astype("<u4").tobytes()


def block_table(payload: bytes) -> BlockTable | None:
    """The table of a contiguous blosc2 frame (C, D, H, W).

    Returns:
        None where the frame holds chunks of a kind that the table cannot express; such scans are read whole.
    """
    array = blosc2.ndarray_from_cframe(payload)
    grid = math.prod(-(-a // b) for a, b in zip(array.shape, array.chunks, strict=True))
    blocks = math.prod(-(-a // b) for a, b in zip(array.chunks, array.blocks, strict=True))
    heads, places = np.zeros((grid, _HEAD), np.uint8), np.zeros((3, grid, blocks), np.uint32)
    size = math.prod(array.blocks) * array.dtype.itemsize
    begin = struct.unpack_from(">i", payload, 11)[0]
    for number in range(grid):
        head = bytes(array.schunk.get_lazychunk(number)[:_HEAD])
        heads[number] = np.frombuffer(head, np.uint8)
        kind = head[31] >> 4 & 7
        if kind == _ZEROS:
            continue
        nbytes, length, stored = struct.unpack_from("<iii", head, 4)
        if kind or payload[begin : begin + _HEAD] != head or nbytes != blocks * size or length != size:
            return None
        if head[2] & _COPIED:
            bounds = _HEAD + np.arange(blocks + 1) * size
        else:
            bounds = np.append(np.frombuffer(payload, "<i4", blocks, begin + _HEAD), stored)
        if (np.diff(bounds) <= 0).any() or bounds[0] < _HEAD or bounds[-1] != stored:
            return None
        places[0, number], places[1, number] = begin + bounds[:-1], np.diff(bounds)
        parts = (payload[begin + low : begin + high] for low, high in pairwise(bounds.tolist()))
        places[2, number] = np.fromiter(map(crc32, parts), np.uint32, blocks)
        begin += stored
    return BlockTable(array.chunks, array.blocks, heads, places)


def parse_blocks(content: bytes, shape: Shape, dtype: DTypeLike, length: int) -> BlockTable:
    """The table in the content of a member.

    Args:
        content: of the member.
        shape: (C, D, H, W) of the scan.
        dtype: of the numbers in its payload.
        length: of the payload.

    Raises:
        ValueError: it is no table of such a payload.
    """
    if content[:4] != _MAGIC or len(content) < 36:
        raise ValueError("its table of blocks is none")
    chunk, block = (tuple(map(int, row)) for row in np.frombuffer(content, "<u4", 8, 4).reshape(2, 4))
    if not all(0 < b <= c <= max(a, b) for a, b, c in zip(shape, block, chunk, strict=True)):
        raise ValueError("its table of blocks has other shapes")
    grid = math.prod(-(-a // c) for a, c in zip(shape, chunk, strict=True))
    blocks = math.prod(-(-c // b) for c, b in zip(chunk, block, strict=True))
    if len(content) != 36 + grid * (_HEAD + 12 * blocks):
        raise ValueError("its table of blocks is cut")
    heads = np.frombuffer(content, np.uint8, grid * _HEAD, 36).reshape(grid, _HEAD)
    places = np.frombuffer(content, "<u4", 3 * grid * blocks, 36 + grid * _HEAD).reshape(3, grid, blocks)
    sizes = np.ascontiguousarray(heads[:, 8:12]).view("<i4")
    if (sizes != math.prod(block) * np.dtype(dtype).itemsize).any():
        raise ValueError("its table of blocks has blocks of another size")
    if (places[0].astype(np.int64) + places[1] > length).any():
        raise ValueError("its table of blocks leads beyond its end")
    return BlockTable(chunk, block, heads, places)


@dataclass(frozen=True)
class _Part:
    """What a region touches of one chunk: the blocks, and for each the part of it and of the region."""

    chunk: int
    blocks: list[int]
    of_block: list[tuple[slice, ...]]
    of_region: list[tuple[slice, ...]]


def read_region(table: BlockTable, shape: Shape, region: Sequence[slice], fetch: Fetch, out: NDArray) -> None:
    """Read a region of a scan.

    Args:
        table: of the scan's payload.
        shape: (C, D, H, W) of the scan.
        region: slices along C, D, H, W, with start and stop inside the scan.
        fetch: reads bytes of the payload.
        out: of the region's shape, and of the dtype of the numbers in the payload.

    Raises:
        DamagedBlock: a block that is touched is not the one whose checksum was taken.
        ValueError: the table does not fit the payload.
    """
    parts = _parts(table, shape, region)
    wanted = [(part.chunk, block) for part in parts for block in part.blocks if table.places[1, part.chunk, block]]
    held = _fetched(table, wanted, fetch)
    for part in parts:
        numbers = _decoded(table, part, held, out.dtype)
        for number, source, target in zip(numbers, part.of_block, part.of_region, strict=True):
            out[target] = number[source]


def _parts(table: BlockTable, shape: Shape, region: Sequence[slice]) -> list[_Part]:
    """The chunks that a region touches."""
    axes = [
        _touched(part.start, part.stop, length, chunk, block)
        for part, length, chunk, block in zip(region, shape, table.chunk, table.block, strict=True)
    ]
    chunks = [-(-length // chunk) for length, chunk in zip(shape, table.chunk, strict=True)]
    blocks = [-(-chunk // block) for chunk, block in zip(table.chunk, table.block, strict=True)]
    found = []
    for along in product(*axes):
        number = int(np.ravel_multi_index([each[0] for each in along], chunks))
        cells = list(product(*(each[1] for each in along)))
        found.append(
            _Part(
                number,
                [_flat([cell[0] for cell in each], blocks) for each in cells],
                [tuple(cell[1] for cell in each) for each in cells],
                [tuple(cell[2] for cell in each) for each in cells],
            )
        )
    return found


def _flat(place: Sequence[int], sizes: Sequence[int]) -> int:
    number = 0
    for each, size in zip(place, sizes, strict=True):
        number = number * size + each
    return number


def _touched(
    start: int, stop: int, length: int, chunk: int, block: int
) -> list[tuple[int, list[tuple[int, slice, slice]]]]:
    """Along one axis: the chunks between start and stop; of each the blocks, with the part of block and of region."""
    found = []
    for number in range(start // chunk, -(-stop // chunk)):
        first, last = max(start, number * chunk), min(stop, (number + 1) * chunk, length)
        cells = []
        for cell in range((first - number * chunk) // block, -(-(last - number * chunk) // block)):
            origin = number * chunk + cell * block
            low, high = max(first, origin), min(last, origin + block)
            cells.append((cell, slice(low - origin, high - origin), slice(low - start, high - start)))
        found.append((number, cells))
    return found


def _fetched(table: BlockTable, wanted: Sequence[tuple[int, int]], fetch: Fetch) -> dict[tuple[int, int], memoryview]:
    """The bytes of the wanted blocks, each verified. Those that lie near each other are read at once."""
    held: dict[tuple[int, int], memoryview] = {}
    if not wanted:
        return held
    index = tuple(np.array(wanted).T)
    begins, lengths, sums = (table.places[row][index].astype(np.int64) for row in range(3))
    order = np.argsort(begins, kind="stable")
    ends = np.maximum.accumulate((begins + lengths)[order])
    cuts = np.flatnonzero(begins[order][1:] - ends[:-1] > _GAP) + 1
    for run in np.split(order, cuts):
        low = int(begins[run[0]])
        content = memoryview(fetch(low, int((begins + lengths)[run].max()) - low))
        for each in run.tolist():
            begin = int(begins[each]) - low
            part = content[begin : begin + int(lengths[each])]
            if crc32(part) != sums[each]:
                raise DamagedBlock("its checksum does not fit")
            held[wanted[each]] = part
    return held


def _decoded(table: BlockTable, part: _Part, held: dict[tuple[int, int], memoryview], kind: np.dtype) -> NDArray:
    """(blocks, C, D, H, W) the numbers of the touched blocks of one chunk, in the dtype of the payload."""
    head = table.heads[part.chunk].tobytes()
    size = struct.unpack_from("<i", head, 8)[0]
    numbers = np.empty((len(part.blocks), *table.block), kind)
    if head[31] >> 4 & 7 == _ZEROS:
        numbers[:] = 0
        return numbers
    pieces = [held[part.chunk, block] for block in part.blocks if (part.chunk, block) in held]
    if len(pieces) != len(part.blocks) or numbers.nbytes != size * len(pieces):
        raise ValueError("its table of blocks does not fit")
    if head[2] & _COPIED:
        if any(len(piece) != size for piece in pieces):
            raise ValueError("its table of blocks does not fit")
        return np.frombuffer(b"".join(pieces), kind).reshape(numbers.shape)
    # A chunk of these blocks alone, in their order: its head, where each begins, and their bytes as they are.
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    first = _HEAD + 4 * len(pieces)
    starts = first + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sizes = struct.pack("<iii", numbers.nbytes, size, first + int(lengths.sum()))
    chunk = b"".join([head[:4], sizes, head[16:], starts.astype("<i4").tobytes(), *pieces])
    blosc2.decompress2(chunk, dst=numbers)
    return numbers
