"""Voxels to bytes and back: to the last bit, whatever they are."""

import io
import json
import tarfile
from pathlib import Path

import blosc2
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.shards.encode import Codec, Encoded, Levels, encode, restore, single_block, summed
from scanfoundry.datasets.shards.reader import ShardReader
from scanfoundry.datasets.shards.writer import ShardWriter

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64")
SMALL = [(1, 1, 1, 1), (1, 1, 1, 7), (3, 1, 13, 11), (1, 17, 19, 23), (1, 31, 1, 2), (2, 2, 2, 2), (1, 5, 64, 64)]
LARGE = [(1, 67, 65, 63), (1, 1, 523, 521), (3, 1, 311, 293), (1, 5, 229, 241), (1, 263, 1, 1009)]  # above 2^18
CODECS = st.sampled_from(["zstd", "lz4hc"])


def integers(kind: str, dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    limits = np.iinfo(dtype)
    if kind == "constant":
        return np.full(shape, rng.choice(np.array([limits.min, 0, 1, limits.max], dtype)), dtype)
    if kind == "extremes":
        return rng.choice(np.array([limits.min, 0, limits.max], dtype), shape)
    if kind == "noise":
        return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    low, high = {"bytes": (0, 255), "words": (0, 65535), "signed": (-32768, 32767)}[kind]
    return rng.integers(max(low, limits.min), min(high, limits.max), shape, endpoint=True).astype(dtype)


def floats(kind: str, dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    limits = np.finfo(dtype)
    few = {
        "constant": [limits.max],
        "negative zero": [-0.0, 0.0, 1.0, 2.0],
        "denormal": np.arange(9) * float(limits.smallest_subnormal),
        "extremes": [limits.min, 0.0, limits.max],
        "huge span": [limits.tiny, 1.0, limits.max],
        "levels": np.sqrt(np.arange(200)),
    }
    if kind in few:
        return rng.choice(np.asarray(few[kind]).astype(dtype), shape)
    numbers = rng.integers(0, {"bytes": 255, "words": 65535}.get(kind, 9), shape, endpoint=True)
    if kind == "noise":
        return rng.normal(0, 100, shape).astype(dtype)
    # As nibabel scales: in double, or in the dtype of the slope.
    slope, offset = rng.choice([0.1, 1 / 3, 2.4420025, 7e-5]), rng.choice([0.0, -1024.0, 0.37])
    if rng.random() < 0.5:
        return numbers.astype(dtype) * dtype.type(slope) + dtype.type(offset)
    return (numbers * slope + offset).astype(dtype)


@st.composite
def volumes(draw: st.DrawFn, shapes: list[tuple[int, ...]]) -> np.ndarray:
    shape, rng = draw(st.sampled_from(shapes)), np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = np.dtype(draw(st.sampled_from(INTEGERS + FLOATS)))
    with np.errstate(over="ignore"):
        if dtype.kind == "f":
            kinds = ["constant", "negative zero", "denormal", "extremes", "huge span", "levels"]
            array = floats(draw(st.sampled_from([*kinds, "bytes", "words", "noise"])), dtype, shape, rng)
        else:
            kinds = ["constant", "extremes", "noise", "bytes", "words", "signed"]
            array = integers(draw(st.sampled_from(kinds)), dtype, shape, rng)
    return np.where(np.isfinite(array), array, 0).astype(dtype) if dtype.kind == "f" else array


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """To the last bit: a negative zero is not a zero."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def region_of(data: st.DataObject, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Any part of at least one voxel, along D, H, W."""
    bounds = []
    for length in shape[1:]:
        low = data.draw(st.integers(0, length - 1))
        bounds.append(slice(low, data.draw(st.integers(low + 1, length))))
    return bounds[0], bounds[1], bounds[2]


def opened(encoded: Encoded, dtype: str | np.dtype) -> np.ndarray:
    """The voxels as blosc2's own opening gives them."""
    numbers = blosc2.ndarray_from_cframe(encoded.payload)[:]
    assert numbers.dtype.name == encoded.stored
    return restore(summed(numbers) if encoded.rows else numbers, dtype, encoded.levels)


def round_trip(voxels: np.ndarray, codec: Codec, frames: bool, data: st.DataObject) -> None:
    encoded = encode(voxels, codec, frames)
    assert same(opened(encoded, voxels.dtype), voxels)
    # Never wider than the voxels, but where that is smaller (bytes as 16-bit numbers).
    assert np.dtype(encoded.stored).itemsize <= max(voxels.dtype.itemsize, 2)
    if encoded.levels is not None:  # through JSON, as in the index
        again = Levels.model_validate_json(encoded.levels.model_dump_json(exclude_defaults=True))
        assert again == encoded.levels
        assert np.dtype(encoded.stored).kind == "u"
    frame = blosc2.ndarray_from_cframe(encoded.payload)
    single = single_block(encoded.payload, voxels.shape, encoded.stored)
    if voxels.size > 1 << 18:
        assert single is None
    elif single is not None:
        assert same(single, frame[:])
    if not encoded.rows:
        where = (slice(None), *region_of(data, voxels.shape))
        assert same(restore(frame[where], voxels.dtype, encoded.levels), voxels[where])
    assert encode(voxels, codec, frames) == encoded


@pytest.mark.filterwarnings("error")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(volumes(SMALL), CODECS, st.booleans(), st.data())
def test_small_scans_come_back(voxels: np.ndarray, codec: Codec, frames: bool, data: st.DataObject) -> None:
    round_trip(voxels, codec, frames, data)


@pytest.mark.filterwarnings("error")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(volumes(LARGE), CODECS, st.booleans(), st.data())
def test_large_scans_come_back(voxels: np.ndarray, codec: Codec, frames: bool, data: st.DataObject) -> None:
    round_trip(voxels, codec, frames, data)


@pytest.mark.parametrize("shape", [(1, 20, 30, 40), (1, 67, 65, 63)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("slope", "offset"), [(0.1, 0.0), (1 / 3, -1024.0), (2.4420025, 0.0)])
def test_scaled_integers_are_stored_as_integers(
    shape: tuple[int, ...], dtype: str, slope: float, offset: float
) -> None:
    numbers = np.random.default_rng(0).integers(0, 4096, shape)
    kind = np.dtype(dtype).type
    voxels = numbers.astype(dtype) * kind(slope) + kind(offset)
    encoded = encode(voxels, "zstd")
    assert encoded.stored == "uint16"
    assert len(encoded.payload) < numbers.size * 2
    assert same(opened(encoded, dtype), voxels)


def test_wide_integers_are_stored_in_sixteen_bits_where_they_fit() -> None:
    shape = (1, 3, 4, 5)
    for dtype in ("int32", "uint32", "int64", "uint64"):
        assert encode(np.full(shape, 65535, dtype), "zstd").stored == "uint16"
        assert encode(np.full(shape, 65536, dtype), "zstd").stored == dtype
    ends = np.array([-32768, 32767], "int64").reshape(1, 1, 1, 2)
    assert encode(ends, "zstd").stored == "int16"
    assert encode(ends - 1, "zstd").stored == encode(ends + 1, "zstd").stored == "int64"


def test_a_level_that_the_sample_missed_is_found_out() -> None:
    """Levels of a large scan are guessed from a part of its voxels; one voxel off them must not be rounded to one."""
    voxels = (np.random.default_rng(0).integers(0, 4096, (1, 130, 64, 64)) * 0.25).astype(np.float32)
    assert encode(voxels, "zstd").stored == "uint16"
    flat = voxels.reshape(-1)
    flat[1] += 0.125  # the sample takes every third voxel, from the first on
    encoded = encode(voxels, "zstd")
    assert (encoded.stored, encoded.levels) == ("float32", None)
    assert same(opened(encoded, "float32"), voxels)


def test_single_block_refuses_what_is_none() -> None:
    voxels = np.random.default_rng(0).integers(0, 99, (1, 9, 10, 11)).astype(np.int16)
    payload = encode(voxels, "zstd").payload
    assert same(single_block(payload, voxels.shape, "int16"), voxels)
    assert single_block(payload, (1, 9, 10, 12), "int16") is None
    assert single_block(payload, voxels.shape, "int32") is None
    # A shape that no memory holds is compared before it is allocated.
    assert single_block(payload, (1, 10**6, 10**6, 10**6), "int16") is None
    assert single_block(payload[:63], voxels.shape, "int16") is None
    assert single_block(b"x" * len(payload), voxels.shape, "int16") is None
    with pytest.raises((ValueError, RuntimeError)):
        single_block(payload[: len(payload) // 2] + bytes(len(payload) - len(payload) // 2), voxels.shape, "int16")


def rebuilt(payload: bytes, facts: dict) -> np.ndarray:
    """All that somebody needs who has no scanfoundry."""
    numbers, dtype, levels = blosc2.ndarray_from_cframe(payload)[:], np.dtype(facts["dtype"]), facts.get("levels", {})
    if facts.get("rows"):
        numbers = np.cumsum(numbers, axis=2, dtype=np.uint8)
    if "table" in levels:
        return np.array(levels["table"], dtype)[numbers]
    voxels = numbers.astype(dtype)
    if levels:
        voxels = voxels * dtype.type(levels.get("scale", 1)) + dtype.type(levels.get("offset", 0))
    return voxels


def test_stock_tools_rebuild_the_voxels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (1, 9, 21, 30)
    scans = {
        "own": rng.integers(-99, 99, shape).astype(np.int16),
        "narrowed": rng.integers(0, 99, shape).astype(np.int64),
        "bytes": rng.integers(0, 9, shape).astype(np.uint8).cumsum(3, dtype=np.uint8),
        "scaled": rng.integers(0, 4000, shape) * 0.37,
        "table": rng.choice(np.sqrt(np.arange(50)).astype(np.float32), shape),
        "float": rng.normal(size=shape).astype(np.float32),
        "large": (rng.integers(0, 4000, (1, 67, 65, 63)) * np.float32(0.1)).astype(np.float32),
    }
    with ShardWriter(tmp_path / "s.tar", "zstd") as writer:
        for key, voxels in scans.items():
            writer.add(Scan(voxels, (1.0, 1.0, 1.0)), key, "mr", "0" * 32)
    assert writer.record is not None
    levels = [entry.levels for entry in ShardReader(tmp_path, writer.record).entries]
    assert [each is not None and (len(each.table) > 0) for each in levels] == [0, 0, 0, 0, 1, 0, 0]
    assert [each is not None for each in levels] == [0, 0, 0, 1, 1, 0, 1]
    samples = {each["__key__"]: each for each in webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False)}
    assert list(samples) == list(scans)
    for key, voxels in scans.items():
        assert same(rebuilt(samples[key]["b2nd"], json.loads(samples[key]["json"])), voxels), key
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "s.tar").read_bytes())) as tar:
        assert tar.getnames()[:3] == ["own.b2nd", "own.json", "narrowed.b2nd"]


def test_levels_that_do_not_go_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="no level in the table"):
        Levels(table=[0.5, 1.5]).decode(np.array([0, 1, 2], np.uint8), "float32")
