"""S3 through its ordinary client (s3fs), against moto's server."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from scanfoundry.datasets.storage.address import Unavailable
from scanfoundry.datasets.storage.prefetch import Prefetcher, PrefetchRequest

MB = 1 << 20


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("s3fs", reason="the extra [s3] is not installed")
    pytest.importorskip("moto", reason="moto[server] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
            break
        except OSError:
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
    yield url
    running.kill()
    running.wait()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """A new bucket's file system; the environment leads the store's own client to the same server."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAX")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("shards")
    yield system
    system.rm("shards", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_fetched_verified_and_kept(bucket, open_store, random_file):
    """Larger than one request's block, so that it comes in parts."""
    ct, mr = random_file(0, 17 * MB + 5), random_file(1, MB)
    bucket.pipe({"shards/ct/000.tar": ct.content, "shards/mr/000.tar": mr.content})
    for folder, file in (("ct", ct), ("mr", mr)):
        store = open_store(f"s3://shards/{folder}", timeout_s=20)
        path = store.local("000.tar", file.sha256, file.size)
        assert path.read_bytes() == file.content
        assert store.small("000.tar") == file.content
    bucket.rm("shards/ct/000.tar")
    assert open_store("s3://shards/ct").local("000.tar", ct.sha256, ct.size).read_bytes() == ct.content


def test_resumed(bucket, open_store, random_file, cache):
    file = random_file(0, 9 * MB)
    bucket.pipe("shards/a.tar", file.content)
    cache.folder.mkdir()
    # Wrong bytes at the end of what came so far would show if they were not kept, and the right ones if they were.
    (cache.folder / f"{file.sha256}.{file.size}.part").write_bytes(file.content[: 5 * MB])
    bucket.pipe("shards/a.tar", bytes(5 * MB) + file.content[5 * MB :])
    store = open_store("s3://shards", timeout_s=20)
    assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content


def test_what_is_not_there(bucket, open_store, random_file):
    file = random_file(0, 100)
    for url in ("s3://shards", "s3://no-such-bucket/x"):
        with pytest.raises(Unavailable, match=r"s3://.*a\.tar cannot be fetched: there is no such file"):
            open_store(url, timeout_s=20).local("a.tar", file.sha256, file.size)


def test_wrong_bytes(bucket, open_store, random_file, cache):
    file, other = random_file(0, MB), random_file(1, MB)
    bucket.pipe("shards/a.tar", other.content)
    with pytest.raises(Unavailable, match=r"s3://shards/a\.tar cannot be fetched in 2 attempts: .*sha256"):
        open_store("s3://shards", attempts=2, timeout_s=20).local("a.tar", file.sha256, file.size)
    assert not (cache.folder / file.sha256).exists()


def test_no_server(bucket, open_store, random_file, monkeypatch):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    file = random_file(0, 100)
    with pytest.raises(Unavailable, match=r"s3://shards/a\.tar cannot be fetched in 1 attempts") as caught:
        open_store("s3://shards", attempts=1, timeout_s=5).local("a.tar", file.sha256, file.size)
    assert "geheim" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.undo()


def test_prefetched_by_three_threads(bucket, open_store, random_file, cache):
    files = {f"{i}.tar": random_file(i, MB) for i in range(6)}
    bucket.pipe({f"shards/{name}": file.content for name, file in files.items()})
    store = open_store("s3://shards", timeout_s=20)
    prefetcher = Prefetcher(budget=100 * MB)
    prefetcher.ahead(PrefetchRequest(store, name, file.sha256, file.size) for name, file in files.items())
    until = time.monotonic() + 60
    while not all((cache.folder / file.sha256).exists() for file in files.values()):
        assert time.monotonic() < until, prefetcher.failed
        time.sleep(0.05)
    prefetcher.close()
