"""Folders for a moment are gone afterwards: by themselves, or, after a kill, with the next start at the same place."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import dcm2niix
import pytest

from scanfoundry.datasets.readers.dicom.conversion import convert
from scanfoundry.datasets.readers.scratch import clear, kept_below, scratch_below, scratch_folder
from scanfoundry.datasets.shards.build import BuildOptions, build


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_gone_with_its_context_and_its_place_if_it_was_made_for_it(tmp_path: Path) -> None:
    place = tmp_path / "run" / "deep"
    with kept_below(place):
        assert not place.exists()
        with scratch_folder() as one, scratch_folder() as other:
            assert one.parent == other.parent == place
            assert oct(one.stat().st_mode & 0o777) == "0o700"
            (one / "header").write_text("Doe^Jane")
            clear(place)  # another process that begins: these are held
            assert (one / "header").exists()
        assert names(place) == []
    assert not place.exists()
    place.mkdir(parents=True)
    with kept_below(place):
        pass
    assert place.exists()


def test_without_a_place_it_is_the_users_own_in_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        assert folder.parent == tmp_path / f"scanfoundry-{os.getuid()}"
        assert oct(folder.parent.stat().st_mode & 0o777) == "0o700"
    assert names(folder.parent) == []
    folder.parent.rmdir()
    folder.parent.symlink_to(tmp_path.parent)
    with pytest.raises(PermissionError), scratch_folder():
        pass


def test_the_decorator_finds_its_argument(tmp_path: Path) -> None:
    @scratch_below("config.run_dir")
    def run(first: int, config: SimpleNamespace, *, third: int = 0) -> Path:
        with scratch_folder() as folder:
            return folder.parent

    config = SimpleNamespace(run_dir=tmp_path / "run")
    assert run(1, config) == run(1, config=config, third=2) == tmp_path / "run"
    assert not (tmp_path / "run").exists()


KILLED = """
import sys, time
from pathlib import Path
from scanfoundry.datasets.readers.scratch import kept_below, scratch_folder
with kept_below(Path(sys.argv[1])), scratch_folder() as folder:
    (folder / "in").mkdir()
    (folder / "in" / "header").write_text("Doe^Jane")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    victim, living = started
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert len(list(tmp_path.rglob("header"))) == 2
    with kept_below(tmp_path):
        assert len(list(tmp_path.rglob("header"))) == 1
    living.send_signal(signal.SIGKILL)
    living.wait()
    clear(tmp_path)
    assert names(tmp_path) == []


@pytest.fixture
def stalled(tmp_path: Path) -> Path:
    """A dcm2niix that copies what it is given and then works for ever: for a kill in the middle of a conversion."""
    script = tmp_path / "bin" / "dcm2niix"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nfor last; do :; done\ncp "$last"/* "$last/../out/"\nsleep 60\n')
    script.chmod(0o755)
    return script


BUILD = """
import sys
from pathlib import Path
import dcm2niix
from scanfoundry.datasets.shards import shard_worker
from scanfoundry.datasets.shards.build import BuildOptions, build
dcm2niix.bin = sys.argv[3]
options = BuildOptions(key_file=Path(sys.argv[2], "site.key"), workers=1)
build([Path(sys.argv[2], "in")], Path(sys.argv[2], "out"), options)
"""


def killed_while_it_converts(code: str, root: Path, converter: Path, there: Callable[[], bool]) -> None:
    """Run `code` until `there`, then kill it and all that it started, as a machine that loses its power does."""
    (root / "tmp").mkdir(exist_ok=True)
    site = root / "site"
    site.mkdir(exist_ok=True)  # workers import it too
    (site / "sitecustomize.py").write_text(f"import dcm2niix\ndcm2niix.bin = {str(converter)!r}\n")
    environment = {**os.environ, "TMPDIR": str(root / "tmp"), "PYTHONPATH": str(site)}
    victim = subprocess.Popen(
        [sys.executable, "-c", code, "", str(root), str(converter)], env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not there():
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL


def telling(root: Path) -> list[str]:
    """Files below `root` (but not the scans themselves) that hold the patient's name, links followed."""
    files = [path for path in root.rglob("*") if path.is_file() and root / "in" not in path.parents]
    return [path.relative_to(root).as_posix() for path in files if b"Doe^Jane" in path.read_bytes()]


def test_a_build_killed_while_it_converts_leaves_no_header_for_longer_than_to_the_next_start(
    tmp_path: Path, stalled: Path, dicom: SimpleNamespace, write_key: Callable[[Path, str], Path]
) -> None:
    write_key(tmp_path / "site.key", "scratch")
    dicom.slices(tmp_path / "in", [(0.0, 0.0, 2.0 * k) for k in range(4)])
    copied = "out/.partial/.scratch-*/out/000003.dcm"
    killed_while_it_converts(BUILD, tmp_path, stalled, lambda: bool(list(tmp_path.glob(copied))))
    assert len(telling(tmp_path)) >= 4  # so there was something to clear, all of it below the partial folder
    assert all(each.startswith("out/.partial/.scratch-") for each in telling(tmp_path))
    assert names(tmp_path / "tmp") == []
    assert dcm2niix.bin == convert.dcm2niix.bin != str(stalled)
    summary = build([tmp_path / "in"], tmp_path / "out", BuildOptions(key_file=tmp_path / "site.key", workers=1))
    assert (summary.scans, summary.quarantined) == (1, {})
    assert telling(tmp_path) == []
    assert not (tmp_path / "out" / ".partial").exists()


def test_the_converter_works_below_a_place_of_any_name(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dicom.slices(tmp_path / "in", [(0.0, 0.0, 2.0 * k) for k in range(4)])
    with kept_below(tmp_path / ".part ial" / "%d ü;$(x) 'q"):
        (scan,), _ = dicom.load(tmp_path / "in")
    assert scan.voxels.shape[1] == 4
    assert names(tmp_path) == [".part ial", "in"]


def test_without_links_the_files_are_copied(
    tmp_path: Path, dicom: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    dicom.slices(tmp_path / "in", [(0.0, 0.0, 2.0 * k) for k in range(4)])

    def refuse(*given: object, **more: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (scan,), _ = dicom.load(tmp_path / "in")
    assert scan.voxels.shape[1] == 4
