"""Nothing is written through what has a lock's or a draft's name but is a link, a pipe or a folder."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes, write_text
from scanfoundry.datasets.shards.resume import locked
from scanfoundry.datasets.storage.cache import Cache, CacheConfig
from scanfoundry.datasets.storage.locks import NoLock, exclusive, open_lock
from scanfoundry.finetune.study.claims import claimed
from scanfoundry.pretrain.distributed.world import ALONE
from scanfoundry.pretrain.training.run_folder import held

PRECIOUS = b"years of work"
Plant = Callable[[Path], None]


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_bytes(PRECIOUS)
    return path


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda place, precious: place.symlink_to(precious),
    "hard link": lambda place, precious: place.hardlink_to(precious),
    "dead link": lambda place, precious: place.symlink_to(precious.with_name("nothing")),
    "pipe": lambda place, precious: os.mkfifo(place),
    "folder": lambda place, precious: place.mkdir(),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_is_none_is_named_and_left(tmp_path: Path, precious: Path, kind: str) -> None:
    for name in ("build", "run", "cache"):
        (tmp_path / name).mkdir()
    KINDS[kind](tmp_path / "build" / ".lock", precious)
    KINDS[kind](tmp_path / "run" / ".lock", precious)
    KINDS[kind](tmp_path / "cache" / "lock", precious)
    with pytest.raises(UserError, match=r"build/\.lock is a link or no plain file"), locked(tmp_path / "build"):
        pass
    with pytest.raises(UserError, match=r"run/\.lock is a link or no plain file"), held(tmp_path / "run", ALONE, 1):
        pass
    with pytest.raises(UserError, match="cache/lock is a link or no plain file"):
        Cache(CacheConfig(folder=tmp_path / "cache")).hold("a" * 64, 3, lambda stream: stream.write(b"abc"), "a shard")
    assert precious.read_bytes() == PRECIOUS
    assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "build" / ".lock").exists() == (kind != "dead link")


def test_a_file_system_without_flock_is_called_that(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = "without flock .*No locks available.*-o flock"
    with pytest.raises(UserError, match=said), held(tmp_path / "run", ALONE, 1):
        pass
    with pytest.raises(UserError, match=said), locked(tmp_path / "build"):
        pass
    with pytest.raises(UserError, match=said), claimed(tmp_path / "study", "one"):
        pass
    with pytest.raises(UserError, match=said):
        Cache(CacheConfig(folder=tmp_path / "cache")).hold("a" * 64, 3, lambda stream: stream.write(b"abc"), "a shard")


def test_a_lock_keeps_what_is_in_it_and_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with exclusive(path, 1) as stream:
        stream.write(b"told")
        with open_lock(path) as other:
            assert other.read() == b"told"
    with exclusive(path, 1) as stream:
        assert stream.read() == b"told"
        assert Path(str(stream.name)) == path


def test_a_folder_of_nobody_s_is_no_lock_problem(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_lock(tmp_path / "none" / ".lock")
    with pytest.raises(NoLock):
        open_lock(tmp_path)


@pytest.mark.parametrize("kind", ["link", "hard link", "dead link", "pipe"])
def test_drafts_and_results_are_never_written_through_a_link(tmp_path: Path, precious: Path, kind: str) -> None:
    for number, write in enumerate((write_text, lambda path, text: write_bytes(path, text.encode()))):
        path = tmp_path / f"result-{number}"
        KINDS[kind](path, precious)
        for ending in ("part", "tmp"):
            KINDS[kind](path.with_name(f".{path.name}.{os.getpid()}.{ending}"), precious)
        write(path, "new")
        assert path.read_text() == "new"
        assert not path.is_symlink()
    assert precious.read_bytes() == PRECIOUS
    assert not (tmp_path / "nothing").exists()
