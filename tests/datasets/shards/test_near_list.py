"""The list of near-duplicates that a build writes, and what a pre-training leaves out by it."""

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import fraction, keyed_hash, site_key
from scanfoundry.datasets.plan import DataConfig, SamplingPlan
from scanfoundry.datasets.shards import finalize as finalize_module
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.format import MANIFEST, NEAR_DUPLICATES
from scanfoundry.datasets.shards.near_list import read_near_duplicates
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.launch.build_summary import describe_build
from scanfoundry.launch.cli.data import check_command

# Re-exports by name of the file, each of the one before it in its line; the folder is the patient.
IMAGES = [["p1/a.png", "p1/a_again.jpg", "p2/a_of_another.png"], ["p3/b.png", "p4/b_again.png"], ["p5/c.png"]]
VOLUMES = [["p6/d.nii.gz", "p7/d_small.nii.gz"], ["p6/e.nii.gz"], ["p8/f.nii.gz"]]


def texture(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    found = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return (found - found.min()) / (found.max() - found.min())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    for seed, names in enumerate([*IMAGES, *VOLUMES]):
        for version, name in enumerate(names):
            path = folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".gz":
                scan = zoom(texture(seed, (40, 36, 30)), 1 - 0.3 * version, order=1) * (700 + 50 * version)
                nib.save(nib.Nifti1Image(scan.astype(np.int16), np.diag([1.0, 1, 2, 1])), path)
            else:
                scan = zoom(texture(seed, (80, 96)), 1 - 0.2 * version, order=1) * (250 - 40 * version) + 3 * version
                Image.fromarray(scan.astype(np.uint8)).save(path)
    (folder / "labels.csv").write_text("id,class\np4/b_again,benign\n")
    return folder


@pytest.fixture(scope="module")
def settings(cohort: Path, fixed_key: Callable[[str], Path]) -> BuildOptions:
    """Every source in a shard of its own."""
    return BuildOptions(key_file=fixed_key("copies"), shard_mb=1e-6, workers=1, patient_regex=r"p\d", modality="mr",
                        labels=[cohort / "labels.csv"])  # fmt: skip


@pytest.fixture(scope="module")
def built(cohort: Path, settings: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    summary = build([cohort / "in"], out, settings)
    assert (summary.scans, summary.near_duplicates) == (10, 4)
    line = describe_build(summary).splitlines()[-1]
    assert line == (
        f"  4 near-duplicates (3 of another patient's scan) are listed in {out / NEAR_DUPLICATES}; in a pre-training, "
        "data.sources.0.near_duplicates=drop leaves them out"
    )
    return out


def key_of(name: str, settings: BuildOptions) -> str:
    return keyed_hash(site_key(settings.key_file), "scan", name)[:20]


def test_the_list(built: Path, settings: BuildOptions) -> None:
    lines = list(csv.DictReader(io.StringIO((built / NEAR_DUPLICATES).read_text())))
    found = {(line["key"], line["kept_key"]): line["same_patient"] for line in lines}
    assert len(found) == len(lines)
    a, again, other, b, b_again, d, small = (
        key_of(name, settings) for name in [*IMAGES[0], *IMAGES[1], *VOLUMES[0]]
    )  # fmt: skip
    # The largest is kept; of b, the one with a label.
    assert found == {(again, a): "yes", (other, a): "no", (b, b_again): "no", (small, d): "no"}
    assert all(0.95 <= float(line["correlation"]) <= 1 for line in lines)
    rows = [entry.key for shard in DataSet(built).manifest.shards for entry in DataSet(built).index(shard).samples]
    assert all((rows[int(x["row"])], rows[int(x["kept_row"])]) == (x["key"], x["kept_key"]) for x in lines)
    record = DataSet(built).manifest.near_duplicates
    assert record is not None
    assert (record.scans, record.others) == (4, 3)


def test_the_same_list_with_any_workers_and_shards(
    cohort: Path, settings: BuildOptions, built: Path, tmp_path: Path, contents: Callable
) -> None:
    build([cohort / "in"], tmp_path / "two", settings.model_copy(update={"workers": 2}))
    assert contents(tmp_path / "two") == contents(built)
    build([cohort / "in"], tmp_path / "one", settings.model_copy(update={"shard_mb": 9.0}))
    assert (tmp_path / "one" / NEAR_DUPLICATES).read_bytes() == (built / NEAR_DUPLICATES).read_bytes()


def test_the_same_list_after_a_break(
    cohort: Path, settings: BuildOptions, built: Path, tmp_path: Path, contents: Callable
) -> None:
    class Stopped(Exception):
        pass

    def stop(*given: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalize_module, "finalize", stop)
        with pytest.raises(Stopped):
            build([cohort / "in"], tmp_path / "out", settings)
    drafts = sorted((tmp_path / "out" / ".partial").glob("*.thumbnails.npy"))
    assert len(drafts) == 10
    drafts[3].unlink()  # as a build of an earlier version leaves it
    assert build([cohort / "in"], tmp_path / "out", settings).resumed_shards == 9
    assert contents(tmp_path / "out") == contents(built)
    assert not list((tmp_path / "out").rglob("*thumbnails*"))  # they show the scans, coarsely


def test_check_tells_them(
    built: Path, settings: BuildOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_command(built, tmp_path / "sheet.png")
    assert "\n  near-duplicates: 4, 3 of another patient's scan (near_duplicates.csv" in capsys.readouterr().out
    folder = Path(shutil.copytree(built, tmp_path / "out"))
    content = (folder / NEAR_DUPLICATES).read_text()
    (folder / NEAR_DUPLICATES).write_text(content.replace(",no,", ",yes,", 1))
    with pytest.raises(UserError, match=r"near_duplicates.csv is damaged"):
        check(folder)


def plan_of(folder: Path, choice: str = "drop", holdout: float = 0.0) -> SamplingPlan:
    source = {"name": "a", "path": folder, "near_duplicates": choice}
    return SamplingPlan(DataConfig(sources=[source], crop_2d=(8, 8), crop_3d=(8, 8, 8), holdout=holdout), 0)


def sampled(plan: SamplingPlan) -> set[str]:
    (data,) = plan.data
    return {
        data.index(data.manifest.shards[shard]).samples[sample].key
        for stream in plan.streams
        for shard, sample in zip(stream.shards, stream.samples, strict=True)
    }


def test_one_of_each_group_is_sampled(built: Path, settings: BuildOptions) -> None:
    everyone = {key_of(name, settings) for names in [*IMAGES, *VOLUMES] for name in names}
    left = {key_of(name, settings) for name in [*IMAGES[0][1:], IMAGES[1][0], VOLUMES[0][1]]}
    plan = plan_of(built)
    assert sampled(plan) == everyone - left
    assert plan.messages == ["source 'a': left out 4 near-duplicates; 6 of 10 scans are sampled"]
    keep = plan_of(built, "keep")
    assert (sampled(keep), keep.messages) == (everyone, [])
    # A patient of whose scans copies are sampled is tested on as little as the others.
    assert plan.patients() == keep.patients()


def test_nothing_resembles_a_held_out_scan(built: Path, settings: BuildOptions) -> None:
    """Whether a held-out patient has the scan that is kept, or the one that is listed."""
    key = site_key(settings.key_file)
    patients = {f"p{number}": keyed_hash(key, "patient", f"p{number}") for number in range(1, 9)}
    shares = {name: fraction(hashed) for name, hashed in patients.items()}
    groups, told = [*IMAGES, *VOLUMES], 0
    for share in sorted(shares.values()):
        held = {name for name in patients if shares[name] < share + 1e-9}
        free = [group for group in groups if held.isdisjoint(name[:2] for name in group)]
        if not free:
            with pytest.raises(UserError, match="all are held out, or resemble a scan that is"):
                plan_of(built, holdout=share + 1e-9)
            continue
        plan = plan_of(built, holdout=share + 1e-9)
        keys = sampled(plan)
        for group in groups:
            assert sum(key_of(name, settings) in keys for name in group) == (group in free)
        told += "that resemble scans of held-out patients" in plan.messages[0]
    assert told, "no share holds out a listed scan whose kept one it does not"


def test_a_build_from_before_they_were_looked_for(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "out"))
    manifest = DataSet(folder).manifest.model_copy(update={"near_duplicates": None})
    (folder / MANIFEST).write_text(manifest.model_dump_json(exclude_defaults=True))
    (folder / NEAR_DUPLICATES).unlink()
    assert read_near_duplicates(DataSet(folder)) is None
    assert check(folder).near_duplicates is None
    assert len(sampled(plan_of(folder, "keep"))) == 10
    with pytest.raises(UserError, match=r"source 'a': .* built before near-duplicates .* 'scanfoundry data build'"):
        plan_of(folder)
