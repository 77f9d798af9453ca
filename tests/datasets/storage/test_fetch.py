"""What a server does wrong, and what becomes of it."""

import logging
import pickle
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.address import Unavailable
from scanfoundry.datasets.storage.store import Store

MB = 1 << 20


def test_a_folder_stays_where_it_is(tmp_path, cache, random_file):
    file = random_file(0, 1000)
    (tmp_path / "a.tar").write_bytes(file.content)
    for location in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        store = Store.of(location, cache)
        assert store.local("a.tar", file.sha256, file.size) == tmp_path / "a.tar"
        assert store.small("a.tar") == store.small("a.tar", file.sha256) == file.content
        assert not store.remote
    with pytest.raises(Unavailable, match="damaged"):
        store.small("a.tar", "0" * 64)
    with pytest.raises(Unavailable, match=r"b\.tar cannot be read: No such file"):
        store.small("b.tar")
    assert not cache.folder.exists()


def test_fetched_once_and_equal(server, open_store, random_file):
    file = random_file(0, 3 * MB + 17)
    server.files["ct/000.tar"] = file.content
    store = open_store(server.url("ct/"))
    path = store.local("000.tar", file.sha256, file.size)
    assert path.read_bytes() == file.content
    copy = pickle.loads(pickle.dumps(store))
    assert copy.local("000.tar", file.sha256, file.size) == path
    assert server.gets("ct/000.tar") == 1
    copy.close()


def test_two_data_sets_with_equal_names_do_not_mix(server, open_store, random_file):
    ct, mr = random_file(1, MB), random_file(2, MB)
    server.files |= {"ct/000.tar": ct.content, "mr/000.tar": mr.content}
    for folder, file in (("ct", ct), ("mr", mr)):
        assert open_store(server.url(folder)).local("000.tar", file.sha256, file.size).read_bytes() == file.content
    # Asked for the other's content, the server's answer is refused, whatever lies in the cache.
    wrong = random_file(3, MB)
    with pytest.raises(Unavailable, match="not what the manifest says"):
        open_store(server.url("ct")).local("000.tar", wrong.sha256, wrong.size)


def test_equal_bytes_are_kept_once(server, open_store, random_file, cache):
    file = random_file(1, MB)
    server.files |= {"a/x.tar": file.content, "b/y.tar": file.content}
    first = open_store(server.url("a")).local("x.tar", file.sha256, file.size)
    assert open_store(server.url("b")).local("y.tar", file.sha256, file.size) == first
    assert server.gets("b/y.tar") == 0


def test_small_files_are_fresh_unless_their_hash_is_known(server, open_store, random_file, cache):
    old, new = random_file(1, 5000), random_file(2, 5001)
    server.files["d/manifest.json"] = old.content
    store = open_store(server.url("d"))
    assert store.small("manifest.json") == old.content
    server.files["d/manifest.json"] = new.content
    assert store.small("manifest.json") == new.content
    assert server.gets("d/manifest.json") == 2
    assert store.small("manifest.json", old.sha256) == old.content
    assert server.gets("d/manifest.json") == 2
    damaged = bytearray(old.content)
    damaged[7] ^= 4
    (cache.folder / old.sha256).write_bytes(damaged)
    with pytest.raises(Unavailable, match="not what the manifest says"):
        store.small("manifest.json", old.sha256)
    server.files["d/manifest.json"] = old.content
    assert store.small("manifest.json", old.sha256) == old.content


def test_a_cut_connection_is_resumed_where_the_server_can(server, faults, open_store, random_file):
    file = random_file(0, 6 * MB)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.cut(2 * MB), faults.cut(3 * MB)]
    assert open_store(server.url("d")).local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert server.sent["d/a.tar"] == file.size  # not a byte twice
    assert [headers.get("Range") for _, _, headers in server.seen] == [None, f"bytes={2 * MB}-", f"bytes={5 * MB}-"]


def test_a_cut_connection_starts_again_where_the_server_cannot_resume(server, faults, open_store, random_file):
    file = random_file(0, 3 * MB)
    server.files["d/a.tar"], server.ranges = file.content, False
    server.faults["d/a.tar"] = [faults.cut(2 * MB)]
    assert open_store(server.url("d")).local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert server.sent["d/a.tar"] == 5 * MB


def test_progress_is_not_a_failure(server, faults, open_store, random_file):
    """Cut more often than there are attempts, but each time further on."""
    file = random_file(0, 8 * MB)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.cut(MB)] * 7
    assert open_store(server.url("d"), attempts=2).local("a.tar", file.sha256, file.size).read_bytes() == file.content


def test_no_progress_ends_and_a_later_run_goes_on(server, faults, open_store, random_file):
    file = random_file(0, 2 * MB)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.cut(MB), faults.cut(0), faults.cut(0), faults.cut(0)]
    store = open_store(server.url("d"))
    with pytest.raises(Unavailable, match=r"cannot be fetched in 3 attempts: the connection was cut"):
        store.local("a.tar", file.sha256, file.size)
    assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert server.sent["d/a.tar"] == file.size


def test_server_errors_are_waited_for(server, faults, open_store, random_file):
    file = random_file(0, 100)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.status(500), faults.status(503), faults.status(429, Retry_After="2")]
    began = time.monotonic()
    assert open_store(server.url("d"), attempts=4).local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert time.monotonic() - began > 2.5
    assert server.gets("d/a.tar") == 4


def test_retry_after_may_be_a_date(server, faults, open_store, random_file):
    file = random_file(0, 100)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.status(503, Retry_After=formatdate(time.time() + 3, usegmt=True))]
    began = time.monotonic()
    open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    assert time.monotonic() - began > 1.9  # a date has whole seconds


def test_server_errors_that_stay_are_told(server, faults, open_store, random_file):
    file = random_file(0, 100)
    server.always = faults.status(503)
    with pytest.raises(Unavailable, match=r"d/a\.tar cannot be fetched in 3 attempts: status 503"):
        open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    assert server.gets("d/a.tar") == 3


@pytest.mark.parametrize(
    ("code", "text"), [(404, "no such file"), (403, "access is denied"), (401, "access is denied")]
)
def test_what_will_not_change_is_asked_once(server, faults, open_store, random_file, cache, code, text):
    file = random_file(0, 100)
    server.always = faults.status(code)
    with pytest.raises(Unavailable, match=text):
        open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    assert server.gets("d/a.tar") == 1
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock" and path.name != "lock"]


def test_wrong_bytes_are_fetched_again(server, faults, open_store, random_file):
    file = random_file(0, MB)
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.flipped, faults.flipped]
    assert open_store(server.url("d")).local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert server.gets("d/a.tar") == 3


@pytest.mark.parametrize("change", ["flipped", "longer", "shorter", "empty"])
def test_bytes_that_stay_wrong_are_refused(server, faults, open_store, random_file, cache, change):
    file = random_file(0, MB)
    served = {"longer": file.content + b"x", "shorter": file.content[:-1], "empty": b"", "flipped": file.content}
    server.files["d/a.tar"] = served[change]
    server.always = faults.flipped if change == "flipped" else None
    reason = {"flipped": "sha256", "longer": "larger than", "shorter": "ends after", "empty": "ends after"}[change]
    with pytest.raises(Unavailable, match=reason):
        open_store(server.url("d")).local("a.tar", file.sha256, file.size)
    assert not (cache.folder / file.sha256).exists()


def test_a_silent_server_does_not_hang(server, faults, open_store, random_file):
    file = random_file(0, MB)
    server.files["d/a.tar"] = file.content
    store = open_store(server.url("d"), timeout_s=0.5, attempts=2)
    server.faults["d/a.tar"] = [faults.silent()] * 2
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no byte for 0\.5 s"):
        store.local("a.tar", file.sha256, file.size)
    assert time.monotonic() - began < 6
    server.faults["d/a.tar"] = [faults.silent(after=MB // 2)]
    assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content


def test_a_file_system_that_never_answers_does_not_hang(open_store, random_file, monkeypatch):
    """The client of another scheme may know no timeout at all."""
    import threading

    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    release = threading.Event()

    class Deaf(MemoryFileSystem):
        protocol = "deaf"

        def _open(self, *arguments, **options):
            release.wait(60)
            raise FileNotFoundError

    fsspec.register_implementation("deaf", Deaf, clobber=True)
    file = random_file(0, 10)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no byte for 0\.5 s"):
        open_store("deaf://d", timeout_s=0.5, attempts=1).local("a.tar", file.sha256, file.size)
    assert time.monotonic() - began < 5
    release.set()


def test_a_slow_server_is_waited_for(server, faults, open_store, random_file):
    """Longer than the timeout as a whole, never as long without a byte."""
    file = random_file(0, 10 * (1 << 18))
    server.files["d/a.tar"] = file.content
    server.faults["d/a.tar"] = [faults.slow(1 << 18, 0.2)]
    assert open_store(server.url("d")).local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert server.gets("d/a.tar") == 1


def test_nobody_listens(open_store, random_file):
    file = random_file(0, 10)
    with pytest.raises(Unavailable, match="no connection to the server"):
        open_store("http://127.0.0.1:9/d", attempts=2).local("a.tar", file.sha256, file.size)


SECRETS = ("geheim", "AKIAX", "sig0123", "token99")


@pytest.mark.parametrize("fault", ["none", "404", "503", "cut", "flipped", "silent", "dead"])
def test_secrets_are_sent_and_never_shown(server, faults, open_store, random_file, cache, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    file = random_file(0, 1000)
    server.files["d/a.tar"] = file.content
    server.always = {
        "none": None,
        "404": faults.status(404),
        "503": faults.status(503),
        "cut": faults.cut(10),
        "flipped": faults.flipped,
        "silent": faults.silent(),
        "dead": None,
    }[fault]
    address = "127.0.0.1:9" if fault == "dead" else f"127.0.0.1:{server.server_port}"
    url = f"http://AKIAX:geheim@{address}/d?X-Amz-Signature=sig0123&token=token99#geheim"
    store = open_store(url, timeout_s=0.3, attempts=2)
    texts = [repr(store), str(store), store.shown("a.tar")]
    if fault == "none":
        assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content
        _, query, headers = server.seen[0]
        assert query == "X-Amz-Signature=sig0123&token=token99"
        assert headers["Authorization"].startswith("Basic ")
    else:
        with pytest.raises(UserError) as caught:
            store.local("a.tar", file.sha256, file.size)
        assert f"http://{address}/d/a.tar" in str(caught.value)
        texts.append(str(caught.value))
        import traceback

        texts.append("".join(traceback.format_exception(caught.value)))
    out = capfd.readouterr()
    names = [str(path) for path in Path(cache.folder).rglob("*")] + [
        path.read_text() for path in cache.folder.glob("*.lock")
    ]
    everything = "\n".join([*texts, *names, caplog.text, out.out, out.err])
    assert not [secret for secret in SECRETS if secret in everything]


def test_addresses_that_cannot_be_read(open_store, random_file):
    file = random_file(0, 10)
    with pytest.raises(UserError, match="chained"):
        open_store("simplecache::https://user:geheim@host/d")
    with pytest.raises(UserError, match="nonsense:// cannot be read"):
        open_store("nonsense://d").local("a.tar", file.sha256, file.size)


def test_memory(open_store, random_file):
    import fsspec

    file = random_file(0, 9 * MB)
    fsspec.filesystem("memory").pipe("/set/a.tar", file.content)
    store = open_store("memory://set")
    assert store.local("a.tar", file.sha256, file.size).read_bytes() == file.content
    assert store.small("a.tar") == file.content
    with pytest.raises(Unavailable, match="no such file"):
        store.small("b.tar")
