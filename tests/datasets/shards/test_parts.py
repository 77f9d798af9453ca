"""A build in parts, merged, equals one build of everything byte for byte, wherever it is killed."""

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset  # noqa: F401 (imported here, so that no forked child has to)
from kills import dies_at, write_here

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards import prepare
from scanfoundry.datasets.shards.build import BuildOptions, build, build_part
from scanfoundry.datasets.shards.build_plan import Part
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.merge import merge
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.shards.resume import locked

FORK = multiprocessing.get_context("fork")
PARTS = [Part(number, 4) for number in (3, 1, 4, 2)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images; the first four are there three times, the next four again with a little noise; a broken file."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    for number in range(24):
        coarse = np.kron(rng.integers(0, 200, (5, 5)), np.ones((8, 8)))
        image = (coarse[:, : 30 + number % 5] + rng.integers(0, 9, (40, 30 + number % 5))).astype(np.uint8)
        np.save(folder / f"p{number}.npy", image)
        for copy in range(2 if number < 4 else 0):
            np.save(folder / f"q{number}{copy}.npy", image)
        if 4 <= number < 8:
            np.save(folder / f"n{number}.npy", image + rng.integers(0, 2, image.shape).astype(np.uint8))
    (folder / "broken.npy").write_bytes(b"no array")
    return folder


@pytest.fixture(scope="module")
def settings(fixed_key: Callable[[str], Path]) -> BuildOptions:
    return BuildOptions(key_file=fixed_key("parts"), shard_mb=0.004, workers=1)


@pytest.fixture(scope="module")
def whole(inputs: Path, settings: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    build([inputs], out, settings)
    return out


def test_what_is_built_holds_all_that_parts_share(whole: Path) -> None:
    manifest = DataSet(whole).manifest
    assert len(manifest.shards) >= 8
    assert manifest.scans == 28
    assert manifest.near_duplicates is not None
    assert manifest.near_duplicates.scans >= 4


def test_parts_of_one_folder(
    inputs: Path, settings: BuildOptions, whole: Path, tmp_path: Path, contents: Callable
) -> None:
    out = tmp_path / "out"
    shards = 0
    for part in PARTS:
        summary = build_part([inputs], out, settings, part)
        shards += summary.shards
        again = build_part([inputs], out, settings, part)
        assert again == replace(summary, resumed_shards=summary.shards)
    assert shards == summary.all_shards
    found = merge([out], out)
    assert (found.scans, found.sources, found.quarantined["refused"]) == (28, 37, 1)
    assert contents(out) == contents(whole)
    assert check(out).duplicates == 0
    assert merge([out], out).scans == 28  # once more does nothing
    late = build_part([inputs], out, settings, PARTS[0])
    assert late.resumed_shards == late.shards
    assert contents(out) == contents(whole)
    assert build([inputs], out, settings).scans == 28


def test_parts_of_folders_of_their_own(
    inputs: Path, settings: BuildOptions, whole: Path, tmp_path: Path, contents: Callable
) -> None:
    """Each machine has its own copy of the inputs, with times of its own."""
    folders = []
    for part in PARTS:
        copy = Path(shutil.copytree(inputs, tmp_path / f"copy{part.number}", copy_function=shutil.copyfile))
        folders.append(tmp_path / f"part{part.number}")
        build_part([copy], folders[-1], settings, part)
    with pytest.raises(UserError, match=r"shards are not built yet: run .*--part 1/4"):
        merge([each for each in folders if each.name != "part1"], tmp_path / "few")
    merge(folders, tmp_path / "new")
    assert contents(tmp_path / "new") == contents(whole)
    merge(folders, folders[2])
    assert contents(folders[2]) == contents(whole)


def test_killed_at_many_steps_it_ends_with_the_same_bytes(
    inputs: Path, settings: BuildOptions, whole: Path, tmp_path: Path, contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(prepare, "run_tasks", write_here)
    out, kills = tmp_path / "out", 0
    for part, steps in zip(PARTS, [(0, 1, 3, 9, 20, 31), (2, 6, 14, 27), (5, 8, 16), (4, 12, 23)], strict=True):
        for step in steps:
            kills += dies_at(step, lambda: build_part([inputs], out, settings, part))  # noqa: B023 (called at once)
        build_part([inputs], out, settings, part)
    for step in (0, 2, 5, 9, 15, 22, 30, 38, 45, 50):
        kills += dies_at(step, lambda: merge([out], out))
    merge([out], out)
    assert contents(out) == contents(whole)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert kills >= 20


def test_parts_at_the_same_time(
    inputs: Path, settings: BuildOptions, whole: Path, tmp_path: Path, contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Processes that begin together in one folder, which none of them has made yet."""
    monkeypatch.setattr(prepare, "run_tasks", write_here)
    out = tmp_path / "out"
    processes = [FORK.Process(target=build_part, args=([inputs], out, settings, part)) for part in PARTS]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    merge([out], out)
    assert contents(out) == contents(whole)


def test_a_build_without_parts_completes_those_that_are_there(
    inputs: Path, settings: BuildOptions, whole: Path, tmp_path: Path, contents: Callable
) -> None:
    out = tmp_path / "out"
    built = build_part([inputs], out, settings, Part(2, 3)).shards
    assert build([inputs], out, settings).resumed_shards == built
    assert contents(out) == contents(whole)


def test_parts_that_do_not_fit(inputs: Path, settings: BuildOptions, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_part([inputs], out, settings, Part(1, 2))
    other = settings.model_copy(update={"modality": "us"})
    with pytest.raises(UserError, match="--modality: unknown then, us now"):
        build_part([inputs], out, other, Part(2, 2))
    build_part([inputs], tmp_path / "other", other, Part(2, 2))
    with pytest.raises(UserError, match="--modality"):
        merge([out, tmp_path / "other"], tmp_path / "new")
    with pytest.raises(UserError, match=r"--part 2/2 to its end"):
        merge([out], out)
    with pytest.raises(UserError, match="holds no part of a build"):
        merge([inputs], tmp_path / "new")
    with locked(out, Part(2, 2)):
        with pytest.raises(UserError, match="another process is building part 2/2"):
            build_part([inputs], out, settings, Part(2, 2))
        with pytest.raises(UserError, match="another build is writing"):
            merge([out], out)
        build_part([inputs], out, settings, Part(1, 2))
    build_part([inputs], out, settings, Part(2, 2))
    with pytest.raises(UserError, match="1 of 37 scans could not be read, more than --max-bad 0 allows"):
        merge([out], out, max_bad=0)
    assert merge([out], out).scans == 28


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/2/3", "-1/4"])
def test_a_part_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="as in --part 2/8"):
        Part.of(text)
    assert Part.of("2/8") == Part(2, 8)


def test_a_scan_that_fills_a_shard_is_said(inputs: Path, settings: BuildOptions, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.arange(120 * 90, dtype=np.uint8).reshape(120, 90))
    summary = build([inputs, tmp_path / "large.npy"], tmp_path / "out", settings)
    (note,) = [note for note in summary.notes if "fills a shard" in note]
    assert note == "1 scan fills a shard by itself: large.npy has 0.0104 MiB; --shard-mb may be larger"
