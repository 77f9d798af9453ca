import hashlib
import json
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import blosc2
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pydantic import ValidationError

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import statistics
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.foreground import foreground_bitmap
from scanfoundry.datasets.shards.format import MANIFEST, pack_bits, unpack_bits
from scanfoundry.datasets.shards.reader import BadSample, DataSet, ShardReader, read_index
from scanfoundry.datasets.shards.writer import ShardWriter

PATIENT = "0" * 32


def write(path: Path, scans: dict[str, np.ndarray]) -> None:
    with ShardWriter(path, "zstd") as writer:
        for key, voxels in scans.items():
            writer.add(Scan(voxels, (1.0, 1.0, 1.0)), key, "mr", PATIENT)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8", "u8"]).flatmap(
        lambda kind: arrays(
            kind,
            array_shapes(min_dims=4, max_dims=4, max_side=40),
            elements=st.integers(0, 100),
            fill=st.integers(0, 9),
        )
    ),
    st.sampled_from(["zstd", "lz4hc"]),
    st.data(),
)
def test_any_scan_and_any_part_of_it_comes_back(voxels: np.ndarray, codec: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.tar"
        with ShardWriter(path, codec) as writer:
            writer.add(Scan(voxels, (1.0, 1.0, 1.0)), "a", "mr", PATIENT)
            writer.add(Scan(voxels[:, ::-1], (1.0, 1.0, 1.0)), "b", "mr", PATIENT)
        reader = ShardReader(Path(folder), writer.record)
        assert np.array_equal(reader.read(0), voxels)
        region = []
        for length in voxels.shape[1:]:
            low = data.draw(st.integers(0, length - 1))
            region.append(slice(low, data.draw(st.integers(low + 1, length))))
        part = reader.read(1, tuple(region))
        assert part.dtype == voxels.dtype
        assert np.array_equal(part, voxels[:, ::-1][(slice(None), *region)])


def test_index_tells_where_members_lie(data_sets: Path) -> None:
    data = DataSet(data_sets / "mr")
    for shard in data.manifest.shards:
        index = data.index(shard)
        with tarfile.open(data.folder / shard.name) as tar:
            members = tar.getmembers()
            assert members[-1].name == "__index__/index.json"
            assert (
                tar.extractfile(members[-1]).read() == (data.folder / shard.name).with_suffix(".idx.json").read_bytes()
            )
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
            by_name = {member.name: member for member in members}
        raw = (data.folder / shard.name).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == shard.sha256
        for entry in index.samples:
            assert by_name[f"{entry.key}.b2nd"].offset_data == entry.offset
            payload = raw[entry.offset : entry.offset + entry.length]
            assert zlib.crc32(payload) == entry.crc32
            array = blosc2.ndarray_from_cframe(payload)
            assert (array.shape, array.dtype.name) == (entry.shape, entry.dtype)
            assert statistics(array[:]) == entry.stats


def test_stock_webdataset_reads_a_shard(data_sets: Path) -> None:
    data = DataSet(data_sets / "mr")
    shard = data.manifest.shards[0]
    entries = {entry.key: entry for entry in data.index(shard).samples}
    samples = list(webdataset.WebDataset(str(data.folder / shard.name), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(entries)
    reader = ShardReader(data.folder, shard)
    for number, sample in enumerate(samples):
        assert json.loads(sample["json"])["shape"] == list(entries[sample["__key__"]].shape)
        assert np.array_equal(blosc2.ndarray_from_cframe(sample["b2nd"])[:], reader.read(number))


def test_a_shard_that_fails_leaves_nothing(tmp_path: Path) -> None:
    good, unfit = np.zeros((1, 4, 4, 4), np.uint8), np.zeros((1, 4, 4, 4), bool)
    with pytest.raises(ValidationError):
        write(tmp_path / "s.tar", {"a": good, "b": unfit})
    with ShardWriter(tmp_path / "s.tar", "zstd") as writer:
        pass
    assert writer.record is None
    assert not list(tmp_path.iterdir())


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=16)))
def test_bitmaps_pack(bitmap: np.ndarray) -> None:
    assert np.array_equal(unpack_bits(pack_bits(bitmap), bitmap.shape), bitmap)


def test_foreground_is_where_the_tissue_is() -> None:
    scan = np.random.default_rng(0).normal(0, 5, (1, 40, 50, 7))
    scan[:, 10:30, 25:, :] += 500
    bitmap = foreground_bitmap(scan, statistics(scan)["threshold"])
    assert bitmap.shape == (10, 12, 1)
    assert bitmap[3:7, 6:].all()
    assert not bitmap[:2].any()
    assert not bitmap[:, :6].any()
    assert foreground_bitmap(np.ones((1, 3, 64, 100)), 0.5).shape == (1, 16, 16)


def copied(data_sets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_sets / "mr", tmp_path / "mr"))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_check_reports_and_draws(data_sets: Path, tmp_path: Path) -> None:
    report = check(data_sets / "mr", tmp_path / "sheet.png")
    assert (report.scans, report.patients) == (24, 12)
    ranges = report.modalities["mr"]
    assert ranges.spacing == [(3.0, 3.0), (2.0, 2.0), (1.0, 1.0)]
    assert ranges.shape[0] == (1, 1)
    assert all(9 <= low < high < 30 for low, high in ranges.shape[1:])
    assert ranges.dtypes == {"int16": 24}
    # Of SPACING_BINS: 1 mm in plane, 3 mm between slices.
    assert (ranges.in_plane[3], sum(ranges.in_plane)) == (24, 24)
    assert (ranges.between[6], sum(ranges.between)) == (24, 24)
    assert (report.duplicates, report.warnings) == (0, {})
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert picture.shape[1] > 800
    assert picture.std() > 20


def test_damage_is_named(data_sets: Path, tmp_path: Path) -> None:
    folder = copied(data_sets, tmp_path)
    shard = DataSet(folder).manifest.shards[1]
    entry = read_index(folder, shard).samples[2]
    flip(folder / shard.name, entry.offset + entry.length // 2)
    with pytest.raises(UserError, match=rf"{shard.name} is damaged \(its sha256"):
        check(folder)
    reader = ShardReader(folder, shard)
    with pytest.raises(BadSample, match=f"{shard.name}, scan {entry.key}: its checksum"):
        reader.read(2)
    assert reader.read(1).shape == reader.entries[1].shape
    with open(folder / shard.name, "r+b") as stream:
        stream.truncate(reader.entries[1].offset + reader.entries[1].length // 2)
    with pytest.raises(BadSample, match="its checksum"):
        reader.read(1)
    assert reader.read(0).shape == reader.entries[0].shape
    with pytest.raises(UserError, match=rf"{shard.name} has \d+ bytes instead of {shard.bytes}"):
        DataSet(folder)
    (folder / shard.name).unlink()
    with pytest.raises(BadSample, match="No such file"):
        ShardReader(folder, shard).read(1)
    with pytest.raises(UserError, match=f"{shard.name} cannot be opened"):
        check(folder)


def test_damaged_index_and_manifest(data_sets: Path, tmp_path: Path) -> None:
    folder = copied(data_sets, tmp_path)
    index = folder / "shard-000001.idx.json"
    flip(index, 300)
    with pytest.raises(UserError, match=r"shard-000001\.idx\.json is damaged"):
        check(folder)
    index.unlink()
    with pytest.raises(UserError, match=r"shard-000001\.idx\.json cannot be read"):
        check(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for change, words in [
        ({"version": 1}, "a format version that this scanfoundry does not read"),
        ({"shards": []}, "damaged"),
    ]:
        (folder / MANIFEST).write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=words):
            DataSet(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        DataSet(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="not a complete data set"):
        DataSet(folder)


def test_totals_must_agree(data_sets: Path, tmp_path: Path) -> None:
    folder = copied(data_sets, tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"patients": 13}))
    with pytest.raises(UserError, match="manifest says otherwise"):
        check(folder)
