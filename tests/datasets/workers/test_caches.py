"""The caches of a worker hold what the stream uses at a time; what does not fit is said."""

import os
import resource
from collections import Counter
from pathlib import Path

import pytest

from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.datasets.shards import index as shard_index
from scanfoundry.datasets.shards.reader import ShardReader
from scanfoundry.datasets.workers import caches, worker
from scanfoundry.datasets.workers.caches import SourceLoad, cache_sizes


def many(data_sets: Path, sources: int, **changes: object) -> DataConfig:
    listed = [{"name": f"s{number}", "path": data_sets / "xr"} for number in range(sources)]
    return DataConfig(sources=listed, crop_2d=(8, 8), batch_2d=16, workers=0, ring=2, **changes)


def test_no_index_is_opened_twice_however_many_sources(data_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_FEWEST", 1)
    opened: Counter[str] = Counter()

    class Counted(ShardReader):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            opened[f"{id(given[0])} {self.name}"] += 1

    monkeypatch.setattr(worker, "ShardReader", Counted)
    with CropLoader(many(data_sets, 8), seed=0) as loader:
        shards = sum(len(data.manifest.shards) for data in loader.plan.data)
        for _ in range(60):
            loader.crops()
    assert len(opened) == shards >= 16
    assert set(opened.values()) == {1}


def test_open_files_stay_within_what_was_said(data_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where few may be open, and the crops stay the same."""
    monkeypatch.setattr(shard_index, "IN_MEMORY", 0)
    with CropLoader(many(data_sets, 4), seed=0) as loader:
        expected = [loader.crops().keys for _ in range(20)]
    before, limit = len(os.listdir("/proc/self/fd")), caches._RESERVED + 6
    monkeypatch.setattr(caches, "file_limit", lambda raised: limit)
    with CropLoader(many(data_sets, 4), seed=0) as loader:
        (first, second) = loader.messages
        assert f"up to 3 open (6 files of {limit})" in first
        assert "the limit of open files allows 3 open shards" in second
        assert "ulimit -n" in second
        for keys in expected:
            assert loader.crops().keys == keys
            assert len(os.listdir("/proc/self/fd")) - before <= 6 + len(loader._buffers.descriptors)


def test_sizes_follow_streams_window_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "file_limit", lambda raised: 100_000)
    sizes = cache_sizes([SourceLoad(16, 200)] * 16, ahead_bytes=10**9, holders=8, workers=8)
    assert (sizes.in_use, sizes.indices, sizes.open_shards, sizes.fetched) == (256, 512, 512, None)
    (line,) = sizes.messages(8)
    assert line.startswith("data: 256 shards are in use at a time; each of 8 workers keeps up to 512 open (1024 files")
    # As many as the cache of fetched files has room for, for all who hold them.
    sizes = cache_sizes([SourceLoad(16, 200, 10**8)] * 2, ahead_bytes=10**9, holders=2, workers=2)
    assert (sizes.open_shards, sizes.fetched) == (5, 5)
    assert "data.cache.gb has room for 5 shards" in sizes.messages(2)[1]
    monkeypatch.setattr(caches, "file_limit", lambda raised: 10)
    assert cache_sizes([SourceLoad(16, 200)], 10**9, 1, 0).open_shards == 1


def test_what_a_source_says_of_its_indices_is_what_they_take(data_sets: Path) -> None:
    import tracemalloc

    with CropLoader(many(data_sets, 3), seed=0) as loader:
        tracemalloc.start()
        for _ in range(40):
            loader.crops()
        held = sum(stat.size for stat in tracemalloc.take_snapshot().statistics("filename") if _of_index(stat))
        tracemalloc.stop()
        said = loader._caches.memory
    assert 0.2 * said < held < 2 * said


def _of_index(stat: object) -> bool:
    name = stat.traceback[0].filename  # type: ignore[attr-defined]
    return name.endswith(("shards/index.py", "shards/format.py", "pydantic/main.py"))


def test_a_worker_raises_its_limit_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    caches.raise_file_limit()
    assert asked == [(4096, 4096)]
    assert (caches.file_limit(raised=True), caches.file_limit(raised=False)) == (4096, 1024)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, resource.RLIM_INFINITY))
    assert caches.file_limit(raised=True) == caches._MOST_FILES
