"""An index whose entries are parsed on demand says what the whole index says, and damage is an error."""

import os
from pathlib import Path

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers.scan import Scan
from scanfoundry.datasets.shards import index as shard_index
from scanfoundry.datasets.shards.format import ShardRecord
from scanfoundry.datasets.shards.hashes import Hashes, halves_of
from scanfoundry.datasets.shards.index import EntryCache, ShardEntries
from scanfoundry.datasets.shards.reader import read_index
from scanfoundry.datasets.shards.writer import ShardWriter
from scanfoundry.datasets.storage.store import FolderStore, Unavailable


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardRecord]:
    folder, rng = tmp_path_factory.mktemp("index"), np.random.default_rng(0)
    with ShardWriter(folder / "s.tar", "zstd") as writer:
        for number in range(30):
            voxels = rng.integers(0, 256, (1, 1, 8, 8 + number), np.uint8)
            writer.add(Scan(voxels, (1.0, 1.0, 1.0)), f"s{number}", "us", f"{number:032x}")
    assert writer.record is not None
    return folder, writer.record


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_entries_are_those_of_the_whole_index(
    shard: tuple[Path, ShardRecord], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "IN_MEMORY", kept)
    folder, record = shard
    expected = read_index(folder, record).samples
    entries = ShardEntries(FolderStore(folder), record, EntryCache(4))
    assert len(entries) == 30
    for number in [*range(30), 3, 3, 29, -1]:
        assert entries[number] == expected[number]
    assert list(entries) == expected
    assert entries[4:7] == expected[4:7]
    assert entries[3] is entries[3]
    for number in (30, -31):
        with pytest.raises(IndexError):
            entries[number]
    entries.close()
    assert entries[12] == expected[12]  # opened again
    entries.close()


def test_caches_keep_indices_apart(shard: tuple[Path, ShardRecord]) -> None:
    folder, record = shard
    cache = EntryCache(100)
    one, other = (ShardEntries(FolderStore(folder), record, cache) for _ in range(2))
    assert one[1].key == other[1].key == "s1"
    assert one[2] is not other[2]


def test_an_index_that_changes_while_it_is_open_is_an_error(
    shard: tuple[Path, ShardRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "IN_MEMORY", 0)
    folder, record = shard
    content = (folder / "s.idx.json").read_bytes()
    path = tmp_path / "s.idx.json"
    path.write_bytes(content)
    entries = ShardEntries(FolderStore(tmp_path), record, EntryCache(1))
    assert entries[0].key == "s0"
    path.write_bytes(content.replace(b'"s7"', b'"s8"'))
    with pytest.raises(Unavailable, match=r"s\.idx\.json has changed since it was opened"):
        entries[7]
    os.truncate(path, 100)
    with pytest.raises(Unavailable, match="has changed"):
        entries[20]
    entries.close()
    path.unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        entries[5]
    with pytest.raises(Unavailable, match="cannot be read"):
        ShardEntries(FolderStore(tmp_path), record, EntryCache(1))


def test_indices_of_other_writers_are_read(tmp_path: Path, shard: tuple[Path, ShardRecord]) -> None:
    """JSON with spaces; and what is damaged before its sum was taken is named."""
    import hashlib
    import json

    folder, record = shard
    content = (folder / "s.idx.json").read_bytes()
    tree = json.loads(content)
    fewer = {**tree, "samples": tree["samples"][:-1]}
    wrong = content.replace(b'"key":"s4"', b'"key":"? "')
    variants = {"spaces": json.dumps(tree, indent=1).encode(), "fewer": json.dumps(fewer).encode(), "wrong": wrong}
    for name, each in variants.items():
        (tmp_path / "s.idx.json").write_bytes(each)
        changed = record.model_copy(update={"index_sha256": hashlib.sha256(each).hexdigest()})
        if name == "spaces":
            assert (
                list(ShardEntries(FolderStore(tmp_path), changed, EntryCache(2))) == read_index(folder, record).samples
            )
            continue
        with pytest.raises(UserError, match="29 scans instead of 30" if name == "fewer" else "damaged"):
            ShardEntries(FolderStore(tmp_path), changed, EntryCache(2))[4]


def test_hashes_are_a_sorted_set() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(16).hex() for _ in range(50)]
    texts += [texts[0][:16] + other[16:] for other in texts[:20]]  # that begin alike
    parts = [halves_of(np.array([t.encode() for t in some], "S32")) for some in (texts, texts[10:30])]
    found = Hashes(parts, ["f" * 32, texts[3]])
    assert list(found) == sorted({*texts, "f" * 32})
    assert len(found) == len({*texts, "f" * 32})
    assert all(text in found for text in texts)
    assert not any(other in found for other in ("0" * 32, texts[0].upper(), "x" * 32, texts[0][:31], 3))
    assert list(Hashes([found.halves()])) == list(found)
    assert list(Hashes()) == []
    fewer = Hashes([found.halves(slice(3, 60))])
    missing = set(Hashes([found.missing_in(fewer)]))
    assert set(found) - set(fewer) <= missing
    assert {text for text in missing if text in fewer} <= {
        text for text in texts if text[:16] in (t[:16] for t in texts[50:])
    }
    assert list(Hashes([found.missing_in(Hashes())])) == list(found)
    assert len(fewer.missing_in(found)) <= 20
    with pytest.raises(ValueError, match="lower case"):
        halves_of(np.array([b"A" * 32], "S32"))
