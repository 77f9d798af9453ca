"""Voxels to the bytes of a .b2nd member and back: a contiguous blosc2 frame, exact to the last bit.

Large scans are stored in their own dtype, in chunks of about 64^3 and blocks that a crop touches few of. Small ones
are one block, and are stored the way that makes them smallest: floats that are a few levels (scaled integers) as the
levels' numbers, bytes as 16-bit numbers, since blosc2's BYTEDELTA does nothing for single bytes.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import blosc2
import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Codec = Literal["zstd", "lz4hc"]
Shape = tuple[int, ...]
# Levels from which on size and speed of reading hardly gain, but writing takes two to three times as long.
_CODECS = {"zstd": (blosc2.Codec.ZSTD, 4), "lz4hc": (blosc2.Codec.LZ4HC, 6)}
_SMALL = 1 << 18  # voxels of a scan that is one block
_BLOCKS = {False: (1, 16, 32, 32), True: (1, 1, 128, 128)}  # of volumes; of images and frames
_CHUNKS = {False: (1, 64, 64, 64), True: (1, 1, 512, 512)}
_WORTH = 1.03  # times smaller must differences of rows be, since it takes time to sum them up
_NOISY = 2.0  # bits per difference: above it, no scan repeats itself, and differences are always smaller
_TABLE = 256  # levels that are stored one by one


class Levels(BaseModel):
    """How stored numbers become voxels: number * scale + offset, or the number's entry in `table`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    offset: FiniteFloat = 0.0
    scale: FiniteFloat = 1.0
    table: Annotated[list[FiniteFloat], Field(max_length=_TABLE)] = []

    def decode(self, numbers: NDArray, dtype: DTypeLike) -> NDArray:
        """The voxels that `numbers` stand for, computed in `dtype`.

        Raises:
            ValueError: a number is not in the table.
        """
        kind = np.dtype(dtype)
        if self.table:
            try:
                return np.take(np.array(self.table, kind), numbers)
            except IndexError as error:
                raise ValueError("a stored number has no level in the table") from error
        voxels = numbers.astype(kind)
        voxels *= np.asarray(self.scale, kind)
        voxels += np.asarray(self.offset, kind)
        return voxels


@dataclass(frozen=True)
class Encoded:
    """A payload, the dtype of the numbers in it, and how these become voxels: see `format.ScanFacts`."""

    payload: bytes
    stored: str
    levels: Levels | None
    rows: bool


def summed(stored: NDArray) -> NDArray[np.uint8]:
    """Numbers (C, D, H, W) whose rows are differences from the row above, modulo 256, as they were."""
    return np.add.accumulate(stored.astype(np.uint8, copy=False), axis=2, dtype=np.uint8)


def restore(stored: NDArray, dtype: DTypeLike, levels: Levels | None) -> NDArray:
    """Stored numbers as voxels of `dtype`."""
    return stored.astype(dtype, copy=False) if levels is None else levels.decode(stored, dtype)


def encode(voxels: NDArray, codec: Codec, frames: bool = False) -> Encoded:
    """`voxels` (C, D, H, W) as the payload of a member.

    frames: the slices are images of their own, so each gets its own chunks.
    """
    stored, levels = _narrowed(voxels)
    if voxels.size > _SMALL:
        flat = frames or voxels.shape[1] == 1
        chunks = tuple(min(a, b) for a, b in zip(_CHUNKS[flat], voxels.shape, strict=True))
        blocks = tuple(min(a, b) for a, b in zip(_BLOCKS[flat], chunks, strict=True))
        return Encoded(_frame(stored, chunks, blocks, codec, delta=False), stored.dtype.name, levels, False)
    return min(_ways(stored, levels, codec), key=lambda way: len(way.payload))


def _ways(stored: NDArray, levels: Levels | None, codec: Codec) -> Iterator[Encoded]:
    """Ways to store a small scan."""

    def way(numbers: NDArray, delta: bool, rows: bool = False) -> Encoded:
        payload = _frame(numbers, numbers.shape, numbers.shape, codec, delta)
        return Encoded(payload, numbers.dtype.name, levels, rows)

    if codec == "zstd" and stored.dtype == np.uint8:
        differences = np.diff(stored, axis=2, prepend=np.uint8(0))
        across, both = _entropy(np.diff(stored)), _entropy(np.diff(differences))
        rows = _WORTH * both < across
        yield way((differences if rows else stored).astype(np.uint16), delta=True, rows=rows)
        if min(across, both) > _NOISY:
            return
    elif codec == "zstd":
        yield way(stored, delta=True)
    yield way(stored, delta=False)


def _entropy(numbers: NDArray[np.uint8]) -> float:
    """Bits per number that a code for each by itself takes: what is left for zstd to do after differences."""
    counts = np.bincount(numbers.reshape(-1), minlength=1)
    shares = counts[counts > 0] / max(1, numbers.size)
    return float(-(shares * np.log2(shares)).sum())


@np.errstate(all="ignore")  # extreme values are found out by comparison
def _narrowed(voxels: NDArray) -> tuple[NDArray, Levels | None]:
    """`voxels` in the smallest dtype that can be stored for them, and how that becomes them again."""
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize > 2:
        low, high = voxels.min(), voxels.max()
        fits = [kind for kind in (np.uint16, np.int16) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
        return (voxels.astype(fits[0]), None) if fits else (voxels, None)
    if voxels.dtype not in (np.float32, np.float64):
        return voxels, None
    values = _values(voxels)
    levels = _even_levels(values)
    numbers = None if levels is None else _numbers(voxels, levels)
    if numbers is None and voxels.size <= _SMALL and len(values) <= _TABLE and not _negative_zero(voxels):
        levels = Levels(table=values.tolist())
        numbers = np.searchsorted(values, voxels).astype(np.uint8)
    return (voxels, None) if numbers is None else (numbers, levels)


def _values(voxels: NDArray) -> NDArray:
    """The values that occur, ascending: all of them in a small scan, else extremes and those of a sample."""
    if voxels.size <= _SMALL:
        return np.sort(np.unique(voxels, sorted=False))  # by hashing: far fewer levels than voxels
    flat = voxels.reshape(-1)
    sample = flat[:: flat.size // _SMALL | 1]
    return np.unique(np.concatenate([sample, [flat.min(), flat.max()]]).astype(voxels.dtype))


def _even_levels(values: NDArray) -> Levels | None:
    """The levels n * scale + offset, n from 0 to 65535, that `values` (ascending) may be; None where they are none.

    They are where an integer scan was multiplied with the slope of its header.
    """
    exact = values.astype(np.float64)
    scale = np.diff(exact).min() if len(values) > 1 else 1.0
    span = exact[-1] - exact[0]
    if not span / scale <= 65535:
        return None
    near = values.dtype.type(_slope(exact, scale))
    # The extremes are rounded: the slope may be the next number above or below.
    scales = [near, *(np.nextafter(near, near.dtype.type(end)) for end in (0, np.inf))]
    for offset in (0.0, float(exact[0])):
        for each in scales:
            levels = Levels(offset=offset, scale=float(each)) if 0 < each < np.inf else None
            if levels is not None and _numbers(values, levels) is not None:
                return levels
    return None


def _slope(values: NDArray[np.float64], step: float) -> float:
    """The slope of `values` (ascending), of which `step` is the smallest distance and rounded: measured ever wider."""
    reach = 32
    while reach <= 65536:
        last = np.searchsorted(values, values[0] + reach * step, side="right") - 1
        if count := round((values[last] - values[0]) / step):
            step = (values[last] - values[0]) / count
        reach *= 2
    return step


def _numbers(voxels: NDArray, levels: Levels) -> NDArray | None:
    """The numbers that `levels` decodes to exactly `voxels`; None where there are none."""
    low, high = ((float(end) - levels.offset) / levels.scale for end in (voxels.min(), voxels.max()))
    if not -0.5 <= low <= high < 65535.5:
        return None
    highest = round(high)
    numbers = np.empty(voxels.shape, np.uint8 if highest < 256 else np.uint16)
    flat, target = voxels.reshape(-1), numbers.reshape(-1)
    for begin in range(0, flat.size, _SMALL):  # slab by slab: no second volume of float64
        part = slice(begin, begin + _SMALL)
        exact = flat[part].astype(np.float64)
        target[part] = np.round((exact - levels.offset) / levels.scale)
        if not np.array_equal(levels.decode(target[part], voxels.dtype), flat[part]) or _negative_zero(flat[part]):
            return None
    return numbers


def _negative_zero(voxels: NDArray) -> bool:
    """True where there is one: it equals the positive zero, and would not come back."""
    return bool(np.signbit(voxels[voxels == 0]).any())


def _frame(voxels: NDArray, chunks: Shape, blocks: Shape, codec: Codec, delta: bool) -> bytes:
    kind, level = _CODECS[codec]
    filters, meta = [blosc2.Filter.SHUFFLE], [0]
    if delta:  # smaller, but slower to decode
        level, filters, meta = 1, [*filters, blosc2.Filter.BYTEDELTA], [0, voxels.dtype.itemsize]
    # One thread: the bytes would depend on the number of them.
    parameters = blosc2.CParams(codec=kind, clevel=level, nthreads=1, filters=filters, filters_meta=meta)
    return blosc2.asarray(voxels, chunks=chunks, blocks=blocks, cparams=parameters).to_cframe()


def single_block(payload: bytes, shape: Shape, dtype: DTypeLike, out: NDArray | None = None) -> NDArray | None:
    """The array in the frame `payload` where that is one chunk of one block, which takes no opening; else None.

    It is decoded into `out`, contiguous and of that shape and dtype, where it is given.

    Offsets are those of blosc2's contiguous frame and chunk formats: length of the header at byte 11, the chunk
    after it, which begins with nbytes, blocksize and cbytes at its bytes 4, 8 and 12.
    """
    if len(payload) < 64 or payload[1:10] != b"\xa8b2frame\x00":
        return None
    start = struct.unpack_from(">i", payload, 11)[0]
    if not 64 <= start <= len(payload) - 32:
        return None
    nbytes, block, cbytes = struct.unpack_from("<iii", payload, start + 4)
    # Before the array is made: an index may speak of a shape that no memory holds.
    whole = nbytes == block == math.prod(shape) * np.dtype(dtype).itemsize
    if not whole or not 32 <= cbytes <= len(payload) - start:
        return None
    array = np.empty(shape, dtype) if out is None else out
    blosc2.decompress2(payload[start : start + cbytes], dst=array)
    return array
