"""Shards ahead of use."""

import threading
import time

import pytest

from scanfoundry.datasets.storage.address import Unavailable
from scanfoundry.datasets.storage.prefetch import Prefetcher, PrefetchRequest

MB = 1 << 20


@pytest.fixture
def prefetcher():
    made = Prefetcher(budget=100 * MB)
    yield made
    made.close()


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_files_are_there_before_they_are_asked_for(server, open_store, random_file, cache, prefetcher):
    files = {f"{i}.tar": random_file(i, MB) for i in range(8)}
    server.files |= {f"d/{name}": file.content for name, file in files.items()}
    store = open_store(server.url("d"))
    prefetcher.ahead(PrefetchRequest(store, name, file.sha256, file.size) for name, file in files.items())
    wait_for(lambda: all((cache.folder / file.sha256).exists() for file in files.values()))
    for name, file in files.items():
        assert store.local(name, file.sha256, file.size).read_bytes() == file.content
    assert len(server.seen) == 8


def test_at_most_three_at_a_time_and_the_soonest_first(server, open_store, random_file, prefetcher):
    files = {f"{i}.tar": random_file(i, 1000) for i in range(7)}
    server.files |= {f"d/{name}": file.content for name, file in files.items()}
    now, most, lock = [0], [0], threading.Lock()

    def counted(handler, content):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.2)
        with lock:
            now[0] -= 1
        handler.serve(content)
        return True

    server.always = counted
    store = open_store(server.url("d"))
    prefetcher.ahead(PrefetchRequest(store, name, file.sha256, file.size) for name, file in files.items())
    wait_for(lambda: len(server.seen) == 7)
    assert most[0] == 3
    assert {path for path, _, _ in server.seen[:3]} == {"d/0.tar", "d/1.tar", "d/2.tar"}


def test_a_new_list_replaces_what_was_waiting(server, open_store, random_file, cache, faults):
    files = {f"{i}.tar": random_file(i, MB) for i in range(6)}
    server.files |= {f"d/{name}": file.content for name, file in files.items()}
    server.always = faults.slow(MB // 4, 0.1)
    store = open_store(server.url("d"))
    wanted = [PrefetchRequest(store, name, file.sha256, file.size) for name, file in files.items()]
    prefetcher = Prefetcher(budget=100 * MB, parallel=1)
    prefetcher.ahead(wanted)
    wait_for(lambda: server.seen)
    prefetcher.ahead(wanted[4:5])
    wait_for(lambda: (cache.folder / files["4.tar"].sha256).exists())
    prefetcher.close()
    assert [path for path, _, _ in server.seen] == ["d/0.tar", "d/4.tar"]


def test_no_more_ahead_than_the_budget(server, open_store, random_file, cache):
    files = {f"{i}.tar": random_file(i, MB) for i in range(6)}
    server.files |= {f"d/{name}": file.content for name, file in files.items()}
    store = open_store(server.url("d"))
    prefetcher = Prefetcher(budget=3 * MB)
    prefetcher.ahead(PrefetchRequest(store, name, file.sha256, file.size) for name, file in files.items())
    wait_for(lambda: all((cache.folder / files[f"{i}.tar"].sha256).exists() for i in range(3)))
    time.sleep(0.3)
    prefetcher.close()
    assert len(server.seen) == 3


def test_its_errors_are_the_consumers(server, open_store, random_file, cache, prefetcher, faults):
    bad, good = random_file(0, 1000), random_file(1, 1000)
    server.files["d/good.tar"] = good.content
    store = open_store(server.url("d"))
    wanted = [
        PrefetchRequest(store, "bad.tar", bad.sha256, bad.size),
        PrefetchRequest(store, "good.tar", good.sha256, good.size),
    ]
    for _ in range(2):
        prefetcher.ahead(wanted)
        wait_for(lambda: (cache.folder / good.sha256).exists() and bad.sha256 in prefetcher.failed)
    assert server.gets("d/bad.tar") == 1  # it does not ask for ever
    with pytest.raises(Unavailable, match="no such file"):
        store.local("bad.tar", bad.sha256, bad.size)


@pytest.mark.parametrize("fault", ["silent", "slow", "busy"])
def test_close_is_prompt_and_lets_go(server, open_store, random_file, faults, fault):
    file = random_file(0, 8 * MB)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [
        {"silent": faults.silent(), "slow": faults.slow(1 << 18, 0.1), "busy": faults.status(503, Retry_After="60")}[
            fault
        ]
    ]
    store = open_store(server.url("d"), timeout_s=30)
    prefetcher = Prefetcher(budget=100 * MB)
    prefetcher.ahead([PrefetchRequest(store, "a.tar", file.sha256, file.size)])
    wait_for(lambda: server.seen)
    time.sleep(0.3)
    began = time.monotonic()
    prefetcher.close()
    assert time.monotonic() - began < 1
    assert not any(thread.name.startswith("scanfoundry-prefetch") for thread in threading.enumerate())
    began = time.monotonic()
    assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert time.monotonic() - began < 5


def test_a_folder_needs_nothing(open_store, tmp_path, random_file, prefetcher):
    file = random_file(0, 10)
    prefetcher.ahead([PrefetchRequest(open_store(str(tmp_path)), "a.tar", file.sha256, file.size)])
    assert not prefetcher.failed
    assert not any(thread.name.startswith("scanfoundry-prefetch") for thread in threading.enumerate())
