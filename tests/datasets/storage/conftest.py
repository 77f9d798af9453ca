"""A cache of the test's own; the web server is that of `tests/support/web_server.py`."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import warm

from scanfoundry.datasets.storage.cache import CacheConfig
from scanfoundry.datasets.storage.store import Store


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(folder=tmp_path / "cache", gb=1.0, timeout_s=1.0, attempts=3)


@pytest.fixture
def open_store(cache: CacheConfig) -> Iterator[Callable[..., Store]]:
    """`open_store(location, gb=...)`: a store whose cache is the test's own; closed with the test."""
    opened = []

    def of(location: str, **changes: Any) -> Store:
        opened.append(Store.of(location, cache.model_copy(update=changes)))
        return opened[-1]

    yield of
    for store in opened:
        store.close()


_CLIENT = """
import sys, json
from pathlib import Path
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.cache import CacheConfig
from scanfoundry.datasets.storage.store import Store
url, config, name, sha256, size = sys.argv[1:6]
store = Store.of(url, CacheConfig.model_validate_json(config))
print("ready", flush=True)
sys.stdin.readline()
try:
    path = store.local(name, sha256, int(size))
    print("has", path.name, path.stat().st_size, flush=True)
except UserError as error:
    print("error", error, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def client(cache: CacheConfig) -> Iterator[Callable[..., warm.Popen]]:
    """A process that asks for one file when it is sent a line, holds it, and ends at the next line."""
    started = []

    def start(url: str, name: str, file: Any, before: Callable[[], None] | None = None, **changes: Any):
        config = cache.model_copy(update=changes).model_dump_json()
        command = [sys.executable, "-c", _CLIENT, url, config, name, file.sha256, str(file.size)]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        if before is None:
            process = warm.Popen(command, **streams)
        else:
            process = subprocess.Popen(command, bufsize=1, preexec_fn=before, **streams)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
