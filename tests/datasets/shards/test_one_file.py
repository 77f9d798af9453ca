"""Whatever happens to a shard's name or its bytes while it is read, voxels are those that its checksum was taken of."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers.scan import Scan
from scanfoundry.datasets.shards.check import check_shard
from scanfoundry.datasets.shards.format import ShardRecord
from scanfoundry.datasets.shards.reader import BadSample, ShardReader
from scanfoundry.datasets.shards.writer import ShardWriter

SHAPE = (1, 64, 70, 70)  # noise of this size is a member that is mapped, and as large whatever the noise
PART = (slice(3, 40), slice(0, 70), slice(5, 9))


def shard(folder: Path, seed: int) -> tuple[ShardRecord, list[np.ndarray]]:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    voxels = [rng.integers(0, 256, SHAPE, np.uint8) for _ in range(2)]
    with ShardWriter(folder / "s.tar", "zstd") as writer:
        for number, each in enumerate(voxels):
            writer.add(Scan(each, (1.0, 1.0, 1.0)), f"s{number}", "ct", "0" * 32)
    assert writer.record is not None
    return writer.record, voxels


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[ShardReader, list[np.ndarray], Path, Path]]:
    """A reader of a shard, its voxels, its path, and the path of another shard that differs in its voxels alone."""
    record, voxels = shard(tmp_path / "a", 0)
    other, _ = shard(tmp_path / "b", 1)
    assert record.bytes == other.bytes
    reader = ShardReader(tmp_path / "a", record)
    yield reader, voxels, tmp_path / "a" / "s.tar", tmp_path / "b" / "s.tar"
    reader.close()


def part_of(reader: ShardReader, number: int) -> np.ndarray:
    out = np.empty((1, 37, 70, 4), np.uint8)
    reader.read_into(number, PART, out)
    return out


def test_a_shard_replaced_by_rename_is_read_on_as_it_was(pair: tuple) -> None:
    reader, voxels, path, other = pair
    assert np.array_equal(part_of(reader, 0), voxels[0][(slice(None), *PART)])
    os.replace(other, path)
    for number in (0, 1):
        assert np.array_equal(part_of(reader, number), voxels[number][(slice(None), *PART)])
        assert np.array_equal(reader.read(number), voxels[number])
    reader.close()
    with pytest.raises(BadSample, match="checksum"):  # opened anew it is the other one
        part_of(reader, 0)


def test_a_shard_written_to_in_place_is_verified_again(pair: tuple) -> None:
    reader, voxels, path, other = pair
    assert np.array_equal(part_of(reader, 0), voxels[0][(slice(None), *PART)])
    with open(path, "r+b") as stream:
        stream.write(other.read_bytes())
    os.utime(path, ns=(0, 0))  # as `cp --preserve` and `rsync --inplace --times` leave it
    for number in (0, 1):
        with pytest.raises(BadSample, match="checksum"):
            part_of(reader, number)


def test_a_shard_that_is_touched_stays_right(pair: tuple) -> None:
    reader, voxels, path, _ = pair
    for _ in range(2):
        assert np.array_equal(part_of(reader, 1), voxels[1][(slice(None), *PART)])
        path.touch()
        path.rename(path.with_name("elsewhere.tar"))
        path.with_name("elsewhere.tar").rename(path)


def test_a_shard_cut_while_it_is_mapped_is_an_error(pair: tuple) -> None:
    reader, _, path, _ = pair
    part_of(reader, 0)
    os.truncate(path, 4096)
    with pytest.raises(BadSample, match="size has changed"):
        part_of(reader, 0)


def test_check_looks_at_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of one and the members of the other: what a shard replaced in between would pass as."""
    record, _ = shard(tmp_path / "a", 0)
    shard(tmp_path / "b", 1)
    check_shard(tmp_path / "a", record)
    opened = open
    times = []

    def replacing(file: object, *args: object, **options: object) -> object:
        stream = opened(file, *args, **options)
        if str(file).endswith("s.tar") and not times:
            times.append(file)
            os.replace(tmp_path / "b" / "s.tar", tmp_path / "a" / "s.tar")
        return stream

    monkeypatch.setattr("builtins.open", replacing)
    with pytest.raises(UserError, match=r"replaced while it was read|damaged"):
        check_shard(tmp_path / "a", record)
    assert times
