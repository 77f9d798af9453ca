"""New scans appended to a data set: old shards stay, a kill leaves the data set as it was, nothing is read twice."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset  # noqa: F401 (imported here, so that no forked child has to)
from kills import dies_at, write_here
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.plan import DataConfig, SamplingPlan, SourceConfig
from scanfoundry.datasets.shards import prepare
from scanfoundry.datasets.shards.build import BuildOptions, append, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.near_list import read_near_duplicates
from scanfoundry.datasets.shards.reader import DataSet


def picture(rng: np.random.Generator) -> np.ndarray:
    coarse = np.kron(rng.integers(0, 200, (5, 5)), np.ones((8, 8)))
    return (coarse + rng.integers(0, 9, (40, 40))).astype(np.uint8)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`old`: 16 images and a broken file. `new`: 6 images, one of which `old` holds under another patient, one near
    another new one, and a volume (a modality of its own is given when it is appended)."""
    root = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    for folder in ("old", "new"):
        (root / folder).mkdir()
    for number in range(16):
        np.save(root / "old" / f"p{number}.npy", picture(rng))
    (root / "old" / "broken.npy").write_bytes(b"no array")
    for number in range(4):
        np.save(root / "new" / f"r{number}.npy", picture(rng))
    shutil.copy(root / "old" / "p3.npy", root / "new" / "again.npy")
    near = np.load(root / "new" / "r0.npy") + rng.integers(0, 2, (40, 40)).astype(np.uint8)
    np.save(root / "new" / "near.npy", near)
    return root


@pytest.fixture(scope="module")
def settings(fixed_key: Callable[[str], Path]) -> BuildOptions:
    return BuildOptions(key_file=fixed_key("append"), shard_mb=0.004, workers=1, modality="xr")


@pytest.fixture(scope="module")
def old(inputs: Path, settings: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("old") / "out"
    build([inputs / "old"], out, settings)
    return out


@pytest.fixture(scope="module")
def grown(old: Path, inputs: Path, settings: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(shutil.copytree(old, tmp_path_factory.mktemp("grown") / "out"))
    summary = append([inputs / "new"], out, settings.model_copy(update={"modality": "ct"}))
    assert (summary.sources, summary.scans, summary.quarantined["duplicate"]) == (6, 21, 1)
    return out


def test_old_shards_stay_and_the_parent_is_named(old: Path, grown: Path, contents: Callable) -> None:
    before, after = contents(old), contents(grown)
    parent, child = DataSet(old), DataSet(grown).manifest
    assert child.parent is not None
    assert (child.parent.sha256, child.parent.scans) == (parent.manifest_hash, 16)
    assert child.shards[: child.parent.shards] == parent.manifest.shards
    assert after[child.parent.file] == before["manifest.json"]
    assert {name for name in before if before[name] != after[name]} == {"manifest.json", "quarantine.jsonl"}
    assert [name for name in after if name.startswith(".")] == []
    report = check(grown)
    assert (report.scans, report.duplicates) == (21, 0)
    assert child.modalities == {"ct": 5, "xr": 16}  # 'ct' takes the first number of the table


def test_rows_of_before_are_those_of_before(old: Path, grown: Path) -> None:
    before, after = DataSet(old), DataSet(grown)
    first, then = before.samples(), after.samples()[:16]
    for name in ("shard", "sample", "depth", "flat", "patient", "study"):
        assert np.array_equal(first[name], then[name])
    names = [after.modalities[number] for number in after.samples()["modality"]]
    assert names == ["xr"] * 16 + ["ct"] * 5


def test_a_patient_who_is_found_later_holds_the_scan_out(grown: Path) -> None:
    """p3 is in the data set as one patient; the append brings it as another, whose share may be smaller."""
    data = DataSet(grown)
    ((row, patients),) = data.manifest.later.items()
    entries = [entry for shard in data.manifest.shards for entry in data.index(shard).samples]
    assert set(patients) <= set(data.manifest.also)
    assert data.manifest.patients == len({entry.patient for entry in entries} | set(data.manifest.also))
    least = min(fraction(each) for each in (entries[row].patient, *patients))
    assert data.samples()["least"][row] == least
    config = DataConfig(
        sources=[SourceConfig(name="x", path=grown)], crop_2d=(8, 8), holdout=np.nextafter(least, 1), workers=0
    )
    drawn = SamplingPlan(config, 0).streams[0]
    shard, sample = data.samples()[row][["shard", "sample"]]
    assert not ((drawn.shards == shard) & (drawn.samples == sample)).any()


def test_near_duplicates_among_the_new_scans(grown: Path) -> None:
    (line,) = read_near_duplicates(DataSet(grown)) or []
    assert min(line.row, line.kept_row) >= 16


def test_what_is_stored_is_not_read_again(
    old: Path, inputs: Path, settings: BuildOptions, tmp_path: Path, contents: Callable
) -> None:
    out = Path(shutil.copytree(old, tmp_path / "out"))
    before = contents(out)
    summary = append([inputs / "old"], out, settings)
    assert (summary.sources, summary.scans) == (0, 16)
    assert summary.notes[0] == "all of these scans are in it already; nothing was done"
    assert contents(out) == before
    both = tmp_path / "both"
    shutil.copytree(inputs / "old", both)
    shutil.copy(inputs / "new" / "r1.npy", both)
    summary = append([both], out, settings)
    assert (summary.sources, summary.scans) == (1, 17)
    assert summary.notes[0] == "17 of them were in it already"
    assert [line.path for line in read_quarantine(out)] == ["broken.npy"]  # refused once, not twice
    shutil.copy(inputs / "new" / "r2.npy", both)
    assert append([both], out, settings).scans == 18
    tables = ["samples-000001.npy", "samples-000002.npy", "samples.npy"]
    assert sorted(name for name in contents(out) if name.startswith("samples")) == tables
    assert check(out).scans == 18


def test_the_data_set_of_before_is_at_hand(old: Path, grown: Path, tmp_path: Path) -> None:
    """A run that was trained on it can go on: a folder of links, with the old manifest in place of the new one."""
    assert DataSet(old).earlier_manifests() == {}
    ((digest, file),) = DataSet(grown).earlier_manifests().items()
    assert digest == DataSet(old).manifest_hash
    for path in grown.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").symlink_to(grown / file)
    again = DataSet(tmp_path)
    assert again.manifest_hash == digest
    assert np.array_equal(again.samples(), DataSet(old).samples())
    before = DataSet(grown).as_of(digest)
    assert before.manifest == DataSet(old).manifest
    assert np.array_equal(before.samples(), DataSet(old).samples())
    with pytest.raises(UserError, match="never had the manifest"):
        DataSet(old).as_of(DataSet(grown).manifest_hash)


def test_killed_at_every_step(
    old: Path, grown: Path, inputs: Path, settings: BuildOptions, tmp_path: Path, contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Until the end it is the data set of before; then it goes on to the same bytes."""
    monkeypatch.setattr(prepare, "run_tasks", write_here)
    options, expected = settings.model_copy(update={"modality": "ct"}), contents(grown)
    hashes = {DataSet(old).manifest_hash, DataSet(grown).manifest_hash}
    seen, number = set(), 0
    while True:
        out = Path(shutil.copytree(old, tmp_path / str(number)))
        died = dies_at(number, lambda: append([inputs / "new"], out, options))  # noqa: B023 (called at once)
        data = DataSet(out)
        data.samples()
        read_near_duplicates(data)
        seen.add(data.manifest_hash)
        if not died:
            break
        append([inputs / "new"], out, options)
        assert contents(out) == expected, f"step {number}"
        shutil.rmtree(out)
        number += 7
    assert contents(out) == expected
    assert seen == hashes
    assert number > 100


def test_appends_that_do_not_fit(
    old: Path, inputs: Path, settings: BuildOptions, tmp_path: Path, fixed_key: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(prepare, "run_tasks", write_here)
    with pytest.raises(UserError, match="no complete data set that scans could be appended to"):
        append([inputs / "new"], tmp_path / "nowhere", settings)
    out = Path(shutil.copytree(old, tmp_path / "out"))
    with pytest.raises(UserError, match="another site key"):
        append([inputs / "new"], out, settings.model_copy(update={"key_file": fixed_key("stranger")}))
    changed = Path(shutil.copytree(inputs / "new", tmp_path / "changed"))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(changed / "x.png")
    shutil.copy(inputs / "new" / "r0.npy", changed / "p1.npy")
    with open(changed / "p1.npy", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"'p1\.npy' has another size than the scan of that name"):
        append([changed], out, settings)
    dies_at(40, lambda: append([inputs / "new"], out, settings))
    os.remove(changed / "p1.npy")
    with pytest.raises(UserError, match=r"an append of other scans .* was begun and not finished"):
        append([changed], out, settings)
    assert append([inputs / "new"], out, settings).scans == 21
    with pytest.raises(UserError, match="number of input scans"):  # what it was first built from is not all of it
        build([inputs / "old"], out, settings)


def test_an_older_data_set_whose_sources_are_not_known(
    old: Path, inputs: Path, settings: BuildOptions, tmp_path: Path
) -> None:
    """One without sources.npy: its scans are read again and found to be there; another scan of a known name is not."""
    out = Path(shutil.copytree(old, tmp_path / "out"))
    manifest = DataSet(out).manifest.model_copy(update={"sources": None})
    (out / "manifest.json").write_text(manifest.model_dump_json(exclude_defaults=True))
    (out / "sources.npy").unlink()
    other = Path(shutil.copytree(inputs / "new", tmp_path / "other"))
    shutil.copy(inputs / "old" / "p5.npy", other / "p5.npy")
    assert append([other], Path(shutil.copytree(out, tmp_path / "fine")), settings).scans == 21
    shutil.copy(other / "r3.npy", other / "p6.npy")
    np.save(other / "p6.npy", np.load(other / "r3.npy")[::-1])
    with pytest.raises(UserError, match="has the name of a new one, and other voxels"):
        append([other], out, settings)
