"""A crop of a large scan reads and checks the blocks that it touches, and gives the voxels of the scan or an error."""

import os
from pathlib import Path

import blosc2
import numpy as np
import pytest

from scanfoundry.datasets.readers.scan import Scan
from scanfoundry.datasets.shards import writer as shard_writer
from scanfoundry.datasets.shards.blocks import WHOLE, block_table, parse_blocks, read_region
from scanfoundry.datasets.shards.check import check_shard
from scanfoundry.datasets.shards.encode import encode
from scanfoundry.datasets.shards.format import WITH_BLOCKS, ShardIndex, ShardRecord, index_name, parse
from scanfoundry.datasets.shards.reader import BadSample, ShardReader
from scanfoundry.datasets.shards.writer import ShardWriter

SHAPES = {"volume": (1, 70, 90, 130), "image": (3, 1, 600, 700), "frames": (1, 3, 400, 530)}


def scan_of(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise with a chunk of zeros and a chunk of noise that is not worth compressing."""
    rng = np.random.default_rng(0)
    voxels = (rng.normal(size=shape) * 30).astype(kind)
    voxels[..., :64, :64] = 0
    if np.dtype(kind).itemsize == 1:
        voxels[..., -70:] = rng.integers(0, 256, voxels[..., -70:].shape)
    return voxels


@pytest.mark.parametrize("codec", ["zstd", "lz4hc"])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_regions_are_those_of_the_scan(name: str, kind: str, codec: str) -> None:
    voxels = scan_of(kind, SHAPES[name])
    encoded = encode(voxels, codec, frames=name == "frames")
    payload, whole = encoded.payload, blosc2.ndarray_from_cframe(encoded.payload)
    table = block_table(payload)
    assert table is not None
    again = parse_blocks(table.to_bytes(), voxels.shape, encoded.stored, len(payload))
    rng = np.random.default_rng(1)
    for turn in range(6):
        low = [int(rng.integers(0, length)) if turn else 0 for length in voxels.shape]
        high = [int(rng.integers(a + 1, b + 1)) if turn else b for a, b in zip(low, voxels.shape, strict=True)]
        region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        out = np.empty([b - a for a, b in zip(low, high, strict=True)], encoded.stored)
        read_region(again, voxels.shape, region, lambda begin, length: payload[begin : begin + length], out)
        assert np.array_equal(out, whole[region], equal_nan=True)


def shard(folder: Path, voxels: list[np.ndarray]) -> ShardRecord:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder / "s.tar", "zstd") as writer:
        for number, each in enumerate(voxels):
            writer.add(Scan(each, (1.0, 1.0, 1.0)), f"s{number}", "ct", "0" * 32)
    assert writer.record is not None
    return writer.record


@pytest.fixture
def noise() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(-500, 500, (1, 80, 100, 140)).astype(np.int16) for _ in range(2)]


def crop(reader: ShardReader, number: int, start: tuple[int, int, int]) -> np.ndarray:
    out = np.empty((1, 20, 20, 20), np.int16)
    reader.read_into(number, tuple(slice(low, low + 20) for low in start), out)
    return out


def test_a_crop_reads_little_and_is_right(
    noise: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = shard(tmp_path, noise)
    check_shard(tmp_path, record)
    read, taken = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *given: taken.append(given[1]) or read(*given))
    reader = ShardReader(tmp_path, record)
    for number, start in [(0, (0, 0, 0)), (1, (60, 80, 120)), (0, (30, 40, 60))]:
        d, h, w = start
        expected = noise[number][:, d : d + 20, h : h + 20, w : w + 20]
        assert np.array_equal(crop(reader, number, start), expected)
        assert np.array_equal(reader.read(number, tuple(slice(low, low + 20) for low in start)), expected)
    assert max(taken) > 0
    assert sum(taken) / 6 < reader.entries[0].length / 4
    assert np.array_equal(reader.read(1), noise[1])
    reader.close()


def test_a_damaged_block_is_an_error_for_the_crops_that_touch_it_alone(noise: list[np.ndarray], tmp_path: Path) -> None:
    record = shard(tmp_path, noise)
    reader = ShardReader(tmp_path, record)
    entry = reader.entries[0]
    assert entry.blocks is not None
    with open(tmp_path / "s.tar", "r+b") as stream:
        stream.seek(entry.offset)
        payload = stream.read(entry.length)
        table = block_table(payload)
        assert table is not None
        begin, length = table.places[0, 0, 0], table.places[1, 0, 0]  # of the block at the origin
        stream.seek(entry.offset + int(begin) + int(length) // 2)
        stream.write(bytes([payload[int(begin) + int(length) // 2] ^ 1]))
    with pytest.raises(BadSample, match="scan s0: its checksum does not fit"):
        crop(reader, 0, (10, 20, 20))
    with pytest.raises(BadSample, match="scan s0: its checksum does not fit"):
        reader.read(0)
    assert np.array_equal(crop(reader, 0, (60, 80, 120)), noise[0][:, 60:, 80:, 120:])
    assert np.array_equal(crop(reader, 1, (10, 20, 20)), noise[1][:, 10:30, 20:40, 20:40])
    reader.close()


@pytest.mark.parametrize("place", [0, 5, 37, 45, 36 + 32 * 12 + 3, -1])
def test_a_damaged_table_is_an_error(noise: list[np.ndarray], tmp_path: Path, place: int) -> None:
    record = shard(tmp_path, noise)
    entry = ShardReader(tmp_path, record).entries[0]
    assert entry.blocks is not None
    with open(tmp_path / "s.tar", "r+b") as stream:
        stream.seek(entry.blocks.offset + place % entry.blocks.length)
        stream.write(b"\xa5")
    with pytest.raises(BadSample, match="scan s0: its checksum"):
        crop(ShardReader(tmp_path, record), 0, (0, 0, 0))


def test_hostile_tables_never_give_other_voxels(noise: list[np.ndarray]) -> None:
    """Tables whose own checksum fits: an error, or the voxels."""
    payload = encode(noise[0], "zstd").payload
    table = block_table(payload)
    assert table is not None
    content, shape, rng = table.to_bytes(), noise[0].shape, np.random.default_rng(0)
    region = (slice(0, 1), slice(3, 40), slice(5, 60), slice(0, 70))
    errors = 0
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(0, len(changed)))] = int(rng.integers(0, 256))
        changed = changed[: int(rng.integers(30, len(changed)))] if rng.random() < 0.1 else changed
        out = np.empty([part.stop - part.start for part in region], np.int16)
        try:
            again = parse_blocks(bytes(changed), shape, "int16", len(payload))
            read_region(again, shape, region, lambda begin, length: payload[begin : begin + length], out)
        except Exception:  # the reader makes a counted bad sample of any
            errors += 1
            continue
        assert np.array_equal(out, noise[0][region])
    assert errors > 10


def test_shards_from_before_are_read_as_they_are(
    noise: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = shard(tmp_path / "new", noise)
    monkeypatch.setattr(shard_writer, "block_table", lambda payload: None)
    old = shard(tmp_path / "old", noise)
    for record, folder, version in ((new, "new", WITH_BLOCKS), (old, "old", 2)):
        content = (tmp_path / folder / index_name(record.name)).read_bytes()
        assert parse(ShardIndex, content, "").version == version
        check_shard(tmp_path / folder, record)
        reader = ShardReader(tmp_path / folder, record)
        assert (reader.entries[0].blocks is None) == (version == 2)
        assert np.array_equal(crop(reader, 1, (20, 30, 40)), noise[1][:, 20:40, 30:50, 40:60])
        reader.close()


def test_small_scans_have_no_table_and_keep_the_version(tmp_path: Path) -> None:
    record = shard(tmp_path, [np.arange(4096, dtype=np.int16).reshape(1, 16, 16, 16)])
    reader = ShardReader(tmp_path, record)
    assert reader.entries[0].blocks is None
    assert reader.entries[0].length < WHOLE
    assert b'"version":2' in (tmp_path / "s.idx.json").read_bytes()
