"""The end of a build: killed at any step, it goes on to the same bytes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset  # noqa: F401 (imported here, so that no forked child has to)
from kills import dies_at

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards import finalize as finalize_module
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.reader import DataSet, read_index


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of which each of the first three is there three times."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    for number in range(12):
        image = rng.integers(0, 255, (12, 14 + number)).astype(np.uint8)
        np.save(folder / f"p{number}.npy", image)
        for copy in range(2 if number < 3 else 0):
            np.save(folder / f"q{number}{copy}.npy", image)
    return folder


@pytest.fixture(scope="module")
def settings(fixed_key: Callable[[str], Path]) -> BuildOptions:
    key = fixed_key("finish")  # decides on the scans' order, and with it on which share a shard
    return BuildOptions(key_file=key, shard_mb=0.0008, workers=1)


@pytest.fixture(scope="module")
def whole(inputs: Path, settings: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a break."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build([inputs], out, settings)
    return out


@pytest.fixture(scope="module")
def written(inputs: Path, settings: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All shards written, nothing finished."""
    out = tmp_path_factory.mktemp("written") / "out"

    def stop(*given: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalize_module, "finalize", stop)
        with pytest.raises(Stopped):
            build([inputs], out, settings)
    return out


def test_what_is_built_holds_all_that_can_become_of_a_shard(written: Path, whole: Path) -> None:
    begun = {path.name for path in (written / ".partial").glob("*.tar")}
    finished = {shard.name: shard for shard in DataSet(whole).manifest.shards}
    assert begun - finished.keys(), "none of only duplicates"
    same = [(written / ".partial" / name).read_bytes() == (whole / name).read_bytes() for name in finished]
    assert {True, False} == set(same), "none left as it is, or none rewritten"
    assert DataSet(whole).manifest.scans == 12
    assert check(whole).duplicates == 0


def test_killed_at_every_step_it_ends_with_the_same_bytes(
    inputs: Path, settings: BuildOptions, written: Path, whole: Path, tmp_path: Path, contents: Callable
) -> None:
    expected, number = contents(whole), 0
    while True:
        out = Path(shutil.copytree(written, tmp_path / str(number)))
        if not dies_at(number, lambda: build([inputs], out, settings)):  # noqa: B023 (called at once)
            break
        build([inputs], out, settings)
        assert contents(out) == expected, f"step {number}"
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [], f"step {number}"
        shutil.rmtree(out)
        number += 1
    assert contents(out) == expected
    assert number > 40


def test_killed_twice(
    inputs: Path, settings: BuildOptions, written: Path, whole: Path, tmp_path: Path, contents: Callable
) -> None:
    for first, second in [(5, 3), (20, 1), (31, 12), (40, 30)]:
        out = Path(shutil.copytree(written, tmp_path / f"{first}-{second}"))
        for number in (first, second):
            assert dies_at(number, lambda: build([inputs], out, settings))  # noqa: B023 (called at once)
        build([inputs], out, settings)
        assert contents(out) == contents(whole)


def test_killed_before_the_first_shard(
    inputs: Path, settings: BuildOptions, whole: Path, tmp_path: Path, contents: Callable
) -> None:
    """A folder that holds nothing but what `locked` and `begin` make is no stranger's."""
    for number in range(5):
        out = tmp_path / str(number)
        assert dies_at(number, lambda: build([inputs], out, settings))  # noqa: B023 (called at once)
    states = [sorted(path.name for path in (tmp_path / str(number)).glob("*")) for number in range(5)]
    assert [".lock"] in states
    assert [".lock", ".partial"] in states
    for state in ([".lock"], [".lock", ".partial"]):
        out = tmp_path / str(states.index(state))
        build([inputs], out, settings)
        assert contents(out) == contents(whole)


def test_a_copied_scan_is_verified(inputs: Path, settings: BuildOptions, written: Path, tmp_path: Path) -> None:
    """A shard that is rewritten gets new checksums: damage must not be signed with them."""
    whole = Path(shutil.copytree(written, tmp_path / "out"))
    for path in (whole / ".partial").glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[512 + 300] ^= 1  # in the first member's payload
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-\d+\.tar is damaged"):
        build([inputs], whole, settings)


def test_where_there_are_no_links(
    inputs: Path,
    settings: BuildOptions,
    written: Path,
    whole: Path,
    tmp_path: Path,
    contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """exFAT, SMB and most object stores that are mounted know no hard links."""

    def refuse(*given: object, **named: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    out = Path(shutil.copytree(written, tmp_path / "out"))
    build([inputs], out, settings)
    assert contents(out) == contents(whole)


def test_a_finished_data_set_has_no_second_name(whole: Path) -> None:
    """Its files are no links to something that could still be written to."""
    for shard in DataSet(whole).manifest.shards:
        assert (whole / shard.name).stat().st_nlink == 1
        assert len(read_index(whole, shard).samples) == shard.samples
