"""The cache: bounded, verified, shared by processes that may die at any moment."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.locks import exclusive
from scanfoundry.datasets.storage.store import Store

MB = 1 << 20


def stored(folder: Path) -> int:
    """Bytes of files and of parts."""
    total = 0
    for path in folder.iterdir():
        try:
            total += 0 if path.name.endswith("lock") else path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def parts(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("damage", ["flip", "flip and old times", "cut", "longer", "other file", "gone", "no record"])
def test_a_damaged_file_is_noticed_and_fetched_again(server, open_store, random_file, cache, damage):
    file = random_file(0, 2 * MB)
    server.files["d/a.tar"] = file.content
    path = open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    times = path.stat()
    wrong = bytearray(file.content)
    wrong[MB] ^= 16
    if damage.startswith("flip"):
        with open(path, "r+b") as stream:
            stream.seek(MB)
            stream.write(wrong[MB : MB + 1])
        if damage == "flip and old times":
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "cut":
        os.truncate(path, MB)
    elif damage == "longer":
        path.write_bytes(file.content + b"x")
    elif damage == "other file":
        (cache.folder / "other").write_bytes(wrong)
        os.utime(cache.folder / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
        os.replace(cache.folder / "other", path)
    elif damage == "gone":
        path.unlink()
    else:
        path.with_name(f"{path.name}.lock").unlink()
    assert open_store(server.url("d")).local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert server.gets("d/a.tar") == (1 if damage == "no record" else 2)


def test_a_whole_file_is_hashed_once_per_boot(server, open_store, random_file, monkeypatch):
    import scanfoundry.datasets.storage.cache as module
    import scanfoundry.datasets.storage.verified as verified

    file = random_file(0, MB)
    server.files["d/a.tar"] = file.content
    hashed = []
    real = module.sha256_of
    monkeypatch.setattr(module, "sha256_of", lambda file: hashed.append(Path(file.name)) or real(file))
    path = open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    assert not hashed  # it was hashed on its way
    boot = path.with_name("boot")
    boot.write_text("after a reboot")
    monkeypatch.setattr(verified, "_BOOT_ID", boot)
    for _ in range(2):
        open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    assert hashed == [path]
    assert server.gets("d/a.tar") == 1


@pytest.fixture
def watched(cache):
    """The most bytes that were ever seen in the cache folder, by a thread that looks all the time."""
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            if cache.folder.exists():
                most[0] = max(most[0], stored(cache.folder))

    thread = threading.Thread(target=look)
    thread.start()
    yield most
    done.set()
    thread.join()


def test_the_bound_holds_and_the_least_recently_used_goes_first(server, open_store, random_file, watched):
    files = {f"{i}.tar": random_file(i, random.Random(i).randrange(10_000, 120_000)) for i in range(30)}
    server.files |= {f"d/{name}": file.content for name, file in files.items()}
    bound, rng, order = 500_000, random.Random(5), []
    store = open_store(server.url("d"), gb=bound / 1e9)
    fetched = 0
    for _ in range(600):
        name = f"{min(29, int(rng.expovariate(0.15)))}.tar"
        before = server.gets(f"d/{name}")
        assert store.local(name, files[name].sha256, files[name].size).read_bytes() == files[name].content
        store.release(name)
        if name in order:
            since = set(order[len(order) - order[::-1].index(name) :])
            together = sum(files[each].size for each in since | {name})
            # With all that was used since it fits, so it was still there; or it does not, and it had to go.
            assert (server.gets(f"d/{name}") > before) == (together > bound)
        fetched += server.gets(f"d/{name}") > before
        order.append(name)
    assert 30 < fetched < 600
    assert 400_000 < watched[0] <= bound


def test_the_bound_holds_for_processes_together(server, client, random_file, cache, watched, faults):
    """Six of 1 MB at once, into a cache for three: the others wait for room."""
    files = [random_file(i, MB) for i in range(6)]
    for i, file in enumerate(files):
        server.files[f"d/{i}.tar"] = file.content
    server.always = faults.slow(MB // 4, 0.1)
    running = [
        client(server.url("d"), f"{i}.tar", file, gb=3.5 * MB / 1e9, timeout_s=20) for i, file in enumerate(files)
    ]
    for process in running:
        process.stdin.write("\n")
    waiting = set(running)
    import select

    while waiting:
        ready, _, _ = select.select([process.stdout for process in waiting], [], [], 20)
        assert ready
        for process in [process for process in waiting if process.stdout in ready]:
            assert process.stdout.readline().startswith("has ")
            waiting.discard(process)
            process.stdin.write("\n")  # lets go
    assert 3 * MB <= watched[0] <= 3.5 * MB


def test_four_processes_that_want_one_file_fetch_it_once(server, client, random_file, faults):
    file = random_file(0, 2 * MB)
    server.files["d/a.tar"] = file.content
    server.always = faults.slow(MB // 4, 0.1)
    running = [client(server.url("d"), "a.tar", file) for _ in range(4)]
    for process in running:
        process.stdin.write("\n")
    assert [process.stdout.readline().split() for process in running] == [["has", file.sha256, str(file.size)]] * 4
    assert server.gets("d/a.tar") == 1


def test_a_file_in_use_stays(server, client, open_store, random_file, cache):
    held, wanted, third = (random_file(i, MB) for i in range(3))
    server.files |= {"d/a.tar": held.content, "d/b.tar": wanted.content, "d/c.tar": third.content}
    process = client(server.url("d"), "a.tar", held)
    process.stdin.write("\n")
    process.stdout.readline()
    store = open_store(server.url("d"), gb=2.5 * MB / 1e9, timeout_s=0.3)
    for _ in range(3):
        for name, file in (("b.tar", wanted), ("c.tar", third)):
            store.local(name, file.sha256, file.size)
            store.release(name)
            assert (cache.folder / held.sha256).exists()
    store.local("b.tar", wanted.sha256, wanted.size)
    with pytest.raises(UserError, match=r"no room for .*d/c\.tar.*full of files in use; raise cache\.gb"):
        store.local("c.tar", third.sha256, third.size)
    process.send_signal(signal.SIGKILL)  # a dead process uses nothing
    process.wait()
    store.local("c.tar", third.sha256, third.size)
    assert not (cache.folder / held.sha256).exists()


def test_a_file_is_held_as_often_as_it_was_asked_for(server, open_store, random_file, cache):
    first, second = random_file(0, MB), random_file(1, MB)
    server.files |= {"d/a.tar": first.content, "d/b.tar": second.content}
    store = open_store(server.url("d"), gb=1.5 * MB / 1e9, timeout_s=0.3)
    for _ in range(2):
        store.local("a.tar", first.sha256, first.size)
    store.release("a.tar")
    with pytest.raises(UserError, match="no room"):
        store.local("b.tar", second.sha256, second.size)
    store.release("a.tar")
    store.local("b.tar", second.sha256, second.size)
    assert not (cache.folder / first.sha256).exists()


def test_a_file_larger_than_the_cache_is_refused_at_once(server, open_store, random_file, cache):
    file = random_file(0, 2 * MB)
    server.files["d/a.tar"] = file.content
    with pytest.raises(UserError, match=r"has 0\.0021 GB and the cache .* may hold 0\.001: raise cache\.gb"):
        open_store(server.url("d"), gb=0.001).local("a.tar", file.sha256, file.size)
    assert server.gets("d/a.tar") == 0
    assert stored(cache.folder) == 0


def test_killed_in_the_middle_and_resumed(server, client, open_store, random_file, cache, faults):
    file = random_file(0, 4 * MB)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.slow(MB // 2, 0.15)]
    first, second = (client(server.url("d"), "a.tar", file) for _ in range(2))
    first.stdin.write("\n")
    wait_for(lambda: any(path.stat().st_size >= MB for path in parts(cache.folder)))
    second.stdin.write("\n")  # waits for the first
    first.kill()
    assert second.stdout.readline().split() == ["has", file.sha256, str(file.size)]
    start = int(server.seen[-1][2]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert MB <= start < file.size
    assert (cache.folder / file.sha256).read_bytes() == file.content
    assert not parts(cache.folder)


@pytest.mark.slow
def test_killed_at_any_moment(server, client, random_file, cache, faults):
    """Whatever a killed process leaves behind, the next one gets the right file, and leaves no part."""
    rng = random.Random(0)
    for number in range(12):
        file = random_file(number, MB)
        server.files["d/a.tar"] = file.content
        server.always = faults.slow(MB // 8, 0.01)
        process = client(server.url("d"), "a.tar", file)
        process.stdin.write("\n")
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        store = Store.of(server.url("d"), cache)
        assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content
        store.close()
    assert not parts(cache.folder)
    assert len([path for path in cache.folder.iterdir() if len(path.name) == 64]) == 12


def test_what_dead_processes_left_is_cleaned(server, open_store, random_file, cache):
    file, lost = random_file(0, MB), random_file(1, MB)
    server.files["d/a.tar"] = file.content
    store = open_store(server.url("d"))
    cache.folder.mkdir()
    old, young = cache.folder / f"{lost.sha256}.{lost.size}.part", cache.folder / f"{'a' * 64}.{MB}.part"
    for path in (old, young):
        path.write_bytes(lost.content[:1000])
    (cache.folder / f"{lost.sha256}.lock").touch()
    for path in (old, cache.folder / f"{lost.sha256}.lock"):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    store.local("a.tar", file.sha256, file.size)
    assert not old.exists()
    assert young.exists()  # somebody may go on with it
    assert sorted(path.name for path in cache.folder.glob("*.lock")) == [f"{file.sha256}.lock"]


def test_a_part_that_was_damaged_is_no_harm(server, open_store, random_file, cache):
    file = random_file(0, MB)
    server.files["d/a.tar"] = file.content
    cache.folder.mkdir()
    for left in (bytes(1000), bytes(MB), bytes(MB + 5)):
        (cache.folder / f"{file.sha256}.{file.size}.part").write_bytes(left)
        store = open_store(server.url("d"))
        assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content
        (cache.folder / file.sha256).unlink()
        store.close()


def test_disk_full(server, open_store, random_file, tmp_path, monkeypatch):
    """A real one: a file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        large, small = random_file(0, 4 * MB), random_file(1, MB)
        server.files |= {"d/a.tar": large.content, "d/b.tar": small.content}
        store = open_store(server.url("d"), folder=folder / "cache")
        with pytest.raises(UserError) as caught:
            store.local("a.tar", large.sha256, large.size)
        text = str(caught.value)
        assert str(folder / "cache") in text
        assert "is full" in text
        assert "0.00419 GB" in text
        assert "\n" not in text
        assert stored(folder / "cache") == 0
        assert store.local("b.tar", small.sha256, small.size).read_bytes() == small.content
        with pytest.raises(UserError, match="is full"):
            store.small("a.tar")
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_file_size_limit(server, client, random_file, cache):
    """What a user without root meets: no file above a limit."""
    file = random_file(0, 2 * MB)
    server.files["d/a.tar"] = file.content

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MB, MB))

    process = client(server.url("d"), "a.tar", file, before=limit)
    process.stdin.write("\n")
    answer = process.stdout.readline()
    assert answer.startswith(f"error the disk of the cache {cache.folder} is full (File too large)")
    assert stored(cache.folder) == 0


def test_a_folder_that_cannot_be_used(server, open_store, random_file, tmp_path):
    (tmp_path / "file").write_text("no folder")
    file = random_file(0, 10)
    with pytest.raises(UserError, match=r"the cache .* cannot be used .*; set cache\.folder"):
        open_store(server.url("d"), folder=tmp_path / "file").local("a.tar", file.sha256, file.size)


def test_a_holder_that_stands_still_is_told(tmp_path):
    path = tmp_path / "x.lock"
    with exclusive(path, 1), pytest.raises(UserError, match="does nothing"), exclusive(path, 0.3):
        pass
    with exclusive(path, 1):  # free again
        pass


def test_a_fork_does_not_keep_a_dead_parents_lock(tmp_path):
    """A child that was forked while another thread fetched outlives its parent."""
    script = """
import os, sys, time
from pathlib import Path
from scanfoundry.datasets.storage.locks import exclusive
with exclusive(Path(sys.argv[1]), 1):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    time.sleep(60)
"""
    path = tmp_path / "x.lock"
    parent = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        with exclusive(path, 2):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_the_user_folder_is_not_written_into_configs(cache):
    from scanfoundry.datasets.storage.cache import CacheConfig

    assert str(CacheConfig().folder) == "~/.cache/scanfoundry/shards"
    assert CacheConfig().ahead_bytes == 25 * 10**9
