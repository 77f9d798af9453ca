"""Packs of kept JPEGs and their compressed index: damage is an error, and nothing else is in them."""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of
from scanfoundry.datasets.labels import Labels
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.shards import index as shard_index
from scanfoundry.datasets.shards import reader as shard_reader
from scanfoundry.datasets.shards import writer as shard_writer
from scanfoundry.datasets.shards.check import check_shard
from scanfoundry.datasets.shards.format import ShardRecord
from scanfoundry.datasets.shards.index import EntryCache, ShardEntries
from scanfoundry.datasets.shards.jpeg import KeptJpeg, keep_jpeg
from scanfoundry.datasets.shards.packed_index import PART, index_text, pack_index, part_of_text, unpack_index
from scanfoundry.datasets.shards.reader import BadSample, ShardReader, read_index
from scanfoundry.datasets.shards.writer import ShardWriter
from scanfoundry.datasets.storage.store import FolderStore, Unavailable


def picture(seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (size, size + seed % 5, 3)).astype(np.uint8)


def saved(folder: Path, seed: int) -> tuple[Scan, KeptJpeg]:
    path = folder / "image.jpg"
    Image.fromarray(picture(seed)).save(path)
    with Image.open(path) as image:
        voxels = np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0)[:, None])
    jpeg = keep_jpeg(path, voxels)
    assert jpeg is not None
    return Scan(voxels, (1.0, 1.0, 1.0)), jpeg


def write(folder: Path, count: int = 12) -> ShardRecord:
    """JPEGs, every fourth with a mask; number 5 as voxels."""
    with ShardWriter(folder / "s.tar", "zstd") as writer:
        for number in range(count):
            scan, jpeg = saved(folder, number)
            mask = (scan.voxels[0] // 100).astype(np.uint8) if number % 4 == 0 else None
            writer.add(scan, f"s{number}", "xr", f"{number:032x}", Labels(mask), jpeg=None if number == 5 else jpeg)
    assert writer.record is not None
    return writer.record


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardRecord]:
    folder = tmp_path_factory.mktemp("packs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "_PACK", 3000)
        return folder, write(folder)


def changed(folder: Path, record: ShardRecord, content: bytes, out: Path) -> ShardRecord:
    """The shard with another content of its tar, whose sum is right."""
    (out / "s.tar").write_bytes(content)
    (out / "s.idx.json").write_bytes((folder / "s.idx.json").read_bytes())
    sums = {"bytes": len(content), "sha256": sha256_of(out / "s.tar")}
    return record.model_copy(update=sums)


def test_what_is_written_is_read(shard: tuple[Path, ShardRecord]) -> None:
    folder, record = shard
    entries = check_shard(folder, record)
    with tarfile.open(folder / "s.tar") as tar:
        names = tar.getnames()
    assert sum(name.endswith(".pack") for name in names) >= 3
    assert {"s5.b2nd", "s5.json"} < set(names)
    assert not {"s4.b2nd", "s4.json", "s4.mask.b2nd"} & set(names)
    reader = ShardReader(folder, record)
    for number, entry in enumerate(entries):
        scan, jpeg = saved(folder, number)
        assert np.array_equal(reader.read(number), scan.voxels)
        assert entry.jpeg == (None if number == 5 else jpeg.pixels)
        mask = reader.read_mask(number)
        assert (mask is not None) == (number % 4 == 0)
        assert mask is None or np.array_equal(mask, scan.voxels[0] // 100)
        payload = (folder / "s.tar").read_bytes()[entry.offset : entry.offset + entry.length]
        if number != 5:
            with Image.open(io.BytesIO(payload)) as image:
                assert np.array_equal(np.moveaxis(np.asarray(image), -1, 0)[:, None], scan.voxels)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_a_bad_sample_of_that_scan_alone(shard: tuple[Path, ShardRecord], data: st.DataObject) -> None:
    folder, record = shard
    entries = read_index(folder, record).samples
    number = data.draw(st.sampled_from([n for n in range(12) if n != 5]))
    entry = entries[number]
    place = entry.offset + data.draw(st.integers(0, entry.length - 1))
    original = (folder / "s.tar").read_bytes()
    content = bytearray(original)
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        (folder / "s.tar").write_bytes(content)
        reader = ShardReader(folder, record)
        for other in range(12):
            if other == number:
                with pytest.raises(BadSample, match=f"scan s{number}: its checksum does not fit"):
                    reader.read(other, (slice(0, 1), slice(2, 5), slice(2, 5)))
            else:
                reader.read(other)
    finally:
        (folder / "s.tar").write_bytes(original)


def test_pixels_of_another_decoder_are_a_bad_sample(
    shard: tuple[Path, ShardRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = shard
    decode = shard_reader.decode_jpeg

    def otherwise(payload: bytes, shape: tuple[int, ...]) -> np.ndarray:
        pixels = decode(payload, shape).copy()
        pixels[3, 3, 1] ^= 1
        return pixels

    monkeypatch.setattr(shard_reader, "decode_jpeg", otherwise)
    reader = ShardReader(folder, record)
    with pytest.raises(BadSample, match="other pixels than at the build"):
        reader.read(0)
    reader.read(5)


def test_an_image_is_decoded_once_for_crops_that_follow_each_other(
    shard: tuple[Path, ShardRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = shard
    decode, seen = shard_reader.decode_jpeg, []
    monkeypatch.setattr(shard_reader, "decode_jpeg", lambda *given: (seen.append(given[1]), decode(*given))[1])
    cache = EntryCache(64)
    one, other = (ShardReader(folder, record, cache) for _ in range(2))
    for number in (0, 0, 1, 1, 0):
        one.read(number)[:] = 0  # what is handed out may be written to
    assert len(seen) == 3
    assert one.read(0).any()
    assert np.array_equal(other.read(0), one.read(0))  # two shards of one cache


@pytest.mark.parametrize("where", ["between", "behind"])
def test_bytes_that_the_index_does_not_know(shard: tuple[Path, ShardRecord], tmp_path: Path, where: str) -> None:
    """A pack is longer than its JPEGs, or there is another pack."""
    folder, record = shard
    content = bytearray((folder / "s.tar").read_bytes())
    with tarfile.open(folder / "s.tar") as tar:
        last = [member for member in tar if member.name.endswith(".pack")][-1]
        index = tar.getmember("__index__/index.json")
        end = last.offset_data + last.size
    if where == "between":
        room = index.offset - end
        assert room
        last.size += 1
        content[end : end + 1] = b"X"
        content[last.offset : last.offset + 512] = last.tobuf(tarfile.USTAR_FORMAT)
    else:
        added = tarfile.TarInfo("more.pack")
        added.size = 512
        content[index.offset : index.offset] = added.tobuf(tarfile.USTAR_FORMAT) + bytes(512)
    with pytest.raises(UserError, match="its packs hold other bytes than its index says"):
        check_shard(tmp_path, changed(folder, record, bytes(content), tmp_path))


def test_metadata_is_found(tmp_path: Path) -> None:
    scan, jpeg = saved(tmp_path, 0)
    payload = jpeg.payload[:-2] + b"\xff\xfe\x00\x06Name" + jpeg.payload[-2:]
    with ShardWriter(tmp_path / "s.tar", "zstd") as writer:
        writer.add(scan, "a", "xr", "0" * 32, jpeg=jpeg._replace(payload=payload))
    with pytest.raises(UserError, match="scan a is a JPEG with metadata"):
        check_shard(tmp_path, writer.record)


@pytest.mark.parametrize("side", [8, 40, 300])
def test_scans_of_a_source_that_proved_damaged_are_taken_back(tmp_path: Path, side: int) -> None:
    """Whatever their size: a tar may keep back what it is given."""
    rng = np.random.default_rng(0)
    scans = [Scan(rng.integers(0, 255, (1, 1, side, side)).astype(np.uint8), (1.0, 1.0, 1.0)) for _ in range(4)]
    with ShardWriter(tmp_path / "s.tar", "zstd") as writer:
        for number in (0, 1, 2):
            writer.add(scans[number], f"s{number}", "xr", "0" * 32)
        writer.cut(1)
        writer.add(scans[3], "s3", "xr", "0" * 32)
    assert [entry.key for entry in check_shard(tmp_path, writer.record)] == ["s0", "s3"]
    with ShardWriter(tmp_path / "t.tar", "zstd") as other:
        for number in (0, 3):
            other.add(scans[number], f"s{number}", "xr", "0" * 32)
    assert (tmp_path / "s.tar").read_bytes() == (tmp_path / "t.tar").read_bytes()


def test_a_source_is_cut_behind_jpegs_that_wait(tmp_path: Path) -> None:
    scan, jpeg = saved(tmp_path, 0)
    with ShardWriter(tmp_path / "s.tar", "zstd") as writer:
        writer.add(scan, "a", "xr", "0" * 32, jpeg=jpeg)
        writer.cut(1)
        writer.add(scan, "b", "xr", "0" * 32)
        writer.add(scan, "c", "xr", "0" * 32)
        writer.cut(1)
        writer.add(scan, "d", "xr", "0" * 32, jpeg=jpeg)
        with pytest.raises(RuntimeError):
            writer.cut(1)
    assert [entry.key for entry in check_shard(tmp_path, writer.record)] == ["a", "d"]


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_entries_of_a_compressed_index(tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "IN_MEMORY", kept)
    record = write(tmp_path, 60)
    content = (tmp_path / "s.idx.json").read_bytes()
    text = index_text(content, "x")
    assert len(content) < len(text) / 2
    assert len(text) > 2 * PART
    assert zlib.decompressobj(31).decompress(content) == text[:PART]  # as any program reads gzip
    expected = read_index(tmp_path, record).samples
    entries = ShardEntries(FolderStore(tmp_path), record, EntryCache(4))
    assert [entries[number] for number in range(60)] == expected
    assert list(entries) == expected
    if not kept:
        (tmp_path / "s.idx.json").write_bytes(content[:40] + bytes(len(content) - 40))
        with pytest.raises(Unavailable, match="has changed since it was opened"):
            entries[0]
    entries.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4 * PART), st.data())
def test_any_part_of_a_compressed_text(size: int, data: st.DataObject) -> None:
    text = np.random.default_rng(size).integers(0, 16, size).astype(np.uint8).tobytes()
    content = pack_index(text)
    whole, places = unpack_index(content, "x")
    assert whole == text
    begin = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(begin + 1, size))
    assert part_of_text(begin, end, places, lambda low, high: content[low:high]) == text[begin:end]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_compressed_index_is_one_line(data: st.DataObject) -> None:
    content = bytearray(pack_index(np.random.default_rng(0).integers(0, 16, 3 * PART).astype(np.uint8).tobytes()))
    place = data.draw(st.integers(2, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(2, len(content)))
    for each in (bytes(content), bytes(content[:cut])):
        try:
            index_text(each, "x")
        except UserError as error:
            assert str(error).startswith("x is damaged (")  # noqa: PT017 (most damage is found, not all)


def test_an_index_that_would_fill_the_memory_is_refused() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    whole = bomb.compress(bytes(1 << 24)) + bomb.flush()
    for content in (whole, pack_index(bytes(1 << 22))):
        with pytest.raises(UserError, match="its compressed parts are of other sizes"):
            index_text(content, "x")
