"""The loader over http: the same stream as from disk, through a cache that holds less than the data set."""

import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, SourceConfig
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.storage.cache import CacheConfig


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(data_sets: Path) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(data_sets))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def config(root: str | Path, cache: CacheConfig, workers: int) -> DataConfig:
    return DataConfig(
        sources=[SourceConfig(name=name, path=f"{root}/{name}") for name in ("mr", "xr")],
        crop_2d=(24, 32), crop_3d=(16, 12, 20), batch_2d=8, batch_3d=4, workers=workers, window=2, cache=cache,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_that_of_the_disk(
    server: ThreadingHTTPServer, data_sets: Path, tmp_path: Path, workers: int
) -> None:
    shards = [shard for name in ("mr", "xr") for shard in DataSet(data_sets / name).manifest.shards]
    total, largest = sum(shard.bytes for shard in shards), max(shard.bytes for shard in shards)
    # Room for the small files, and for fewer shards than there are.
    room = 2.2 * largest + 60_000
    assert room < total + 60_000
    cache = CacheConfig(folder=tmp_path / "cache", gb=room / 1e9)
    url = f"http://127.0.0.1:{server.server_port}"
    with CropLoader(config(data_sets, cache, 0), 3) as local, CropLoader(config(url, cache, workers), 3) as remote:
        for _ in range(40):
            here, there = next(local), next(remote)
            assert here.keys == there.keys
            assert torch.equal(here.voxels, there.voxels)
        assert remote.stats()["bad_samples"] == 0
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert stored < 1.2 * room


def test_a_server_that_goes_away_is_an_error_that_names_it_without_secrets(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    cache = CacheConfig(folder=tmp_path / "cache", attempts=1, timeout_s=2)
    url = f"http://me:geheim@127.0.0.1:{server.server_port}"
    with CropLoader(config(url, cache, 0), 3) as loader:
        loader._prefetcher.close()
        server.shutdown()
        server.server_close()
        with pytest.raises(UserError, match=r"bad_sample_ceiling.*http://127\.0\.0\.1") as caught:
            deque(islice(loader, 60), maxlen=0)
    assert "geheim" not in str(caught.value)
