"""DICOM among everything else, the whole way: from a folder as hospitals export them to shards, plan and batches."""

import errno
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import warm
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined, read_quarantine
from scanfoundry.datasets.discovery.sources import NO_FILE_OF_IT, PlannedSource, ShardPlan
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, SamplingPlan, SourceConfig
from scanfoundry.datasets.readers import Source, scans_of
from scanfoundry.datasets.readers.dicom import group, scan_headers
from scanfoundry.datasets.readers.dicom.conversion import convert
from scanfoundry.datasets.shards.build import BuildOptions, BuildSummary, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.datasets.shards.shard_worker import ShardResult, ShardTask, run, sample_key

dicom = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("readers") / "conftest.py")))
CLASS = "1.2.840.10008.5.1.4.1.1."
MR, CR, US, REPORT = (CLASS + end for end in ("4", "1", "3.1", "88.11"))
SAME = "another file holds the same instance"


def stack(count: int) -> list[tuple[float, float, float]]:
    return [(0.0, 0.0, 4.0 * number) for number in range(count)]


def image(path: Path, patient: str, modality: str, sop_class: str, pixels: np.ndarray, **values: str) -> Path:
    values = {"PatientID": patient, "StudyInstanceUID": f"1.2.3.{len(patient)}", **values}
    dataset = dicom.header(Modality=modality, SOPClassUID=sop_class, **values)
    dataset.SeriesInstanceUID = generate_uid()
    if pixels.size:
        dicom.put_pixels(dataset, pixels)
    return dicom.save(dataset, path)


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, write_nifti: Callable, write_png: Callable) -> Path:
    """CT (a disc with DICOMDIR), MR of three volumes without suffix, X-ray, cine, report, NIfTI, PNG, text; nested."""
    root = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    place = {"StudyID": "1", "SeriesInstanceUID": "1.2.3.11", "PatientID": "P-1", "BodyPartExamined": "HEAD"}
    files = dicom.slices(root / "first", stack(40), PixelSpacing=[6.0, 6.0], **place)
    disc = FileSet()
    for file in files:
        disc.add(file)
    disc.write(root / "2021" / "disc")
    shutil.rmtree(root / "first")

    def volume(number: int) -> dict[str, int]:
        return {"AcquisitionNumber": number // 6 + 1}

    series = {"Modality": "MR", "SOPClassUID": MR, "SeriesInstanceUID": "1.2.3.12", "PatientID": "P-1"}
    for file in dicom.slices(root / "2022" / "a b" / "MR", stack(6) * 3, each=volume, RescaleIntercept=0, **series):
        file.rename(file.with_suffix(""))
    image(root / "2022" / "XR" / "1.2.3.4.5", "P-1", "CR", CR, dicom.texture(30, 44, 3))
    cine = rng.integers(0, 255, (9, 40, 50, 3)).astype(np.uint8)
    image(root / "US" / "cine.DCM", "P-2", "US", US, cine)
    image(root / "US" / "report", "P-2", "SR", REPORT, np.empty(0))
    write_nifti(root / "research" / "sub-7_T1w.nii.gz", rng.integers(0, 900, (20, 22, 24)).astype(np.int16))
    write_png(root / "research" / "fundus.png", rng.integers(0, 255, (33, 35)).astype(np.uint8))
    (root / "2022" / "notes.txt").write_text("see report")
    return root


@pytest.fixture(scope="module")
def few(key_file: Path) -> BuildOptions:
    """A shard per source."""
    return BuildOptions(key_file=key_file, shard_mb=1e-4, workers=1, modality="other")


@pytest.fixture(scope="module")
def built(export: Path, few: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildSummary]:
    out = tmp_path_factory.mktemp("built") / "out"
    return out, build([export], out, few)


def patients(out: Path) -> Counter[str]:
    data = DataSet(out)
    return Counter(entry.patient for shard in data.manifest.shards for entry in data.index(shard).samples)


def left_out(out: Path) -> dict[str, tuple[str, str]]:
    return {line.path: (line.kind, line.reason) for line in read_quarantine(out)}


def test_counts_modalities_and_what_is_left_out(built: tuple[Path, BuildSummary]) -> None:
    out, summary = built
    assert (summary.sources, summary.scans, summary.patients, summary.quarantined) == (6, 8, 4, {})
    assert DataSet(out).manifest.modalities == {"ct": 1, "mr": 3, "other": 2, "us": 1, "xr": 1}
    assert left_out(out) == {
        "2021/disc/DICOMDIR": ("skipped", "DICOMDIR: a directory of other files"),
        "2022/notes.txt": ("skipped", NO_FILE_OF_IT),
        "US/report": ("skipped", "structured report, no image"),
    }
    assert summary.ignored == {"(other)": 2, ".txt": 1}


def test_warnings_are_counted_everywhere(built: tuple[Path, BuildSummary]) -> None:
    out, summary = built
    expected = {"burned_in_annotation": 1, "face": 1}
    assert summary.warnings == DataSet(out).manifest.warnings == check(out).warnings == expected


def test_scans_are_what_the_readers_give(
    export: Path, built: tuple[Path, BuildSummary], few: BuildOptions, key_file: Path
) -> None:
    data = DataSet(built[0])
    stored = {}
    for shard in data.manifest.shards:
        reader = ShardReader(data.folder, shard)
        stored |= {entry.key: (entry, reader.read(number)) for number, entry in enumerate(reader.entries)}
    sources, _ = group(scan_headers(sorted(path for path in export.rglob("*") if path.is_file())), export)
    compared = Counter[str]()
    for source in sources:
        for scan in scans_of(source):
            key = sample_key(site_key(key_file), PlannedSource(source, "", ""), scan.part)
            entry, voxels = stored[key]
            assert np.array_equal(voxels, scan.voxels)
            assert voxels.dtype == scan.voxels.dtype
            assert (entry.modality, entry.orientation, entry.frames) == (scan.modality, scan.orientation, scan.frames)
            assert (entry.facts, entry.warnings) == (scan.facts, list(scan.warnings))
            assert entry.spacing == pytest.approx(scan.spacing)
            compared[entry.modality] += 1
    assert compared == {"ct": 1, "mr": 3, "us": 1, "xr": 1}


def test_a_patient_is_one_in_all_series_and_builds(
    export: Path, built: tuple[Path, BuildSummary], few: BuildOptions, key_file: Path, tmp_path: Path
) -> None:
    first, second = (keyed_hash(site_key(key_file), "patient", name) for name in ("P-1", "P-2"))
    found = patients(built[0])
    assert (found[first], found[second]) == (5, 1)
    build([export / "2022"], tmp_path / "part", few)
    assert patients(tmp_path / "part") == {first: 4}
    other = few.model_copy(update={"key_file": tmp_path / "other.key"})
    build([export / "2022"], tmp_path / "other", other)
    assert patients(tmp_path / "other") == {keyed_hash(site_key(other.key_file), "patient", "P-1"): 4}
    assert not set(patients(tmp_path / "other")) & set(found)


def test_the_users_pattern_overrides_the_header(
    export: Path, few: BuildOptions, key_file: Path, tmp_path: Path
) -> None:
    build([export], tmp_path, few.model_copy(update={"patient_regex": r"^(\w+)/"}))
    key = site_key(key_file)
    wanted = {"2021": 1, "2022": 4, "US": 1, "research": 2}
    assert patients(tmp_path) == {keyed_hash(key, "patient", name): count for name, count in wanted.items()}


def test_one_series_in_two_folders_is_stored_once(few: BuildOptions, key_file: Path, tmp_path: Path) -> None:
    dicom.slices(tmp_path / "in" / "a", stack(6))
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b" / "c")
    # The same voxels exported anew, with other identifiers: only the voxels tell.
    dicom.slices(tmp_path / "in" / "d", stack(6), SeriesInstanceUID="1.2.9", PatientID="P-9")
    summary = build([tmp_path / "in"], tmp_path / "out", few)
    assert (summary.sources, summary.scans, summary.patients, summary.quarantined) == (2, 1, 2, {"duplicate": 1})
    decisions = left_out(tmp_path / "out")
    copies = {path: reason for path, (kind, reason) in decisions.items() if kind == "skipped"}
    assert copies == {f"b/c/{n:04}.dcm": f"{SAME}: a/{n:04}.dcm" for n in range(6)}
    (entry,) = DataSet(tmp_path / "out").index(DataSet(tmp_path / "out").manifest.shards[0]).samples
    key = site_key(key_file)
    assert set(entry.all_patients()) == {keyed_hash(key, "patient", name) for name in ("K-4711", "P-9")}


def test_a_series_in_two_inputs_asks_for_their_parent(few: BuildOptions, tmp_path: Path) -> None:
    for folder in "ab":
        dicom.slices(tmp_path / folder / "s", stack(3))
    with pytest.raises(UserError, match=r"two inputs hold .*a/s/0000\.dcm.*b/s/0000\.dcm.*common parent"):
        build([tmp_path / "a", tmp_path / "b"], tmp_path / "out", few)


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    export: Path, built: tuple[Path, BuildSummary], few: BuildOptions, tmp_path: Path, contents: Callable
) -> None:
    code = (
        "import sys; from pathlib import Path; from scanfoundry.datasets.shards.build import BuildOptions, build; "
        "build([Path(sys.argv[1])], Path(sys.argv[2]), BuildOptions.model_validate_json(sys.argv[3]))"
    )
    kills = 0
    for done in (1, 3, 5):
        victim = subprocess.Popen(
            [sys.executable, "-c", code, str(export), str(tmp_path), few.model_dump_json()], start_new_session=True
        )
        while victim.poll() is None and len(list((tmp_path / ".partial").glob("shard-*.tar.json"))) < done:
            time.sleep(0.002)
        os.killpg(victim.pid, signal.SIGKILL)
        kills += victim.wait() == -signal.SIGKILL and not (tmp_path / "manifest.json").exists()
    assert kills >= 2
    assert build([export], tmp_path, few).resumed_shards >= 3
    assert contents(tmp_path) == contents(built[0])


def test_killed_while_it_closes_it_leaves_no_paths(
    export: Path, built: tuple[Path, BuildSummary], few: BuildOptions, tmp_path: Path, contents: Callable
) -> None:
    out = shutil.copytree(built[0], tmp_path / "out")
    (out / ".partial").mkdir()
    (out / ".partial" / "shard-000000.tar.json").write_text(
        '{"record":null,"paths":["P-1/x"],"sources":1,"quarantine":[]}'
    )
    build([export], out, few)
    assert contents(out) == contents(built[0])
    assert not (out / ".partial").exists()


def test_images_and_cines_give_2d_crops_volumes_3d_crops(built: tuple[Path, BuildSummary]) -> None:
    config = DataConfig(
        sources=[SourceConfig(name="all", path=built[0])], crop_2d=(16, 16), crop_3d=(4, 16, 16), batch_2d=4,
        batch_3d=4, workers=0,
    )  # fmt: skip
    plan = SamplingPlan(config, 0)
    tables = [plan.data[0].index(shard).samples for shard in plan.data[0].manifest.shards]
    met: dict[bool, set[str]] = {True: set(), False: set()}
    for step in range(40):
        for draw in plan.draws(step):
            entry = tables[draw.shard][draw.sample]
            met[plan.kind(step).crop[0] == 1].add(f"{entry.modality} {entry.shape[1]} {entry.frames}")
    assert met[True] == {"xr 1 False", "us 9 True", "other 1 False"}
    assert met[False] == {"ct 40 False", "mr 6 False", "other 24 False"}
    shapes = set()
    with CropLoader(config, 0) as loader:
        for _ in range(8):
            batch = next(loader)
            shapes.add((batch.is_2d, tuple(batch.voxels.shape[2:]), bool(np.isfinite(batch.voxels.numpy()).all())))
    assert shapes == {(True, (1, 16, 16), True), (False, (4, 16, 16), True)}


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return warm.run([warm.SCANFOUNDRY, "data", *words], capture_output=True, text=True, timeout=120)


def test_the_command_line_says_what_happened(export: Path, key_file: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "in")
    path = next((tmp_path / "in" / "2022" / "a b" / "MR").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    done = command("build", tmp_path / "in", "--out", tmp_path / "out", "--key-file", key_file, "--max-bad", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 scans of 4 patients from 6 sources" in done.stdout
    assert "1 could not be read or trusted, see " in done.stdout
    assert "look at 1 burned_in_annotation, 1 face" in done.stdout
    decisions = [decision for path, decision in left_out(tmp_path / "out").items() if "/MR/" in path]
    assert len(decisions) == 18  # every file of the series has a line, and the series is counted once
    for kind, reason in decisions:
        assert (kind, reason[:10], reason[-11:]) == ("refused", "truncated:", " (18 files)")
    done = command("check", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all checksums right, no duplicates" in done.stdout
    strict = command("build", tmp_path / "in", "--out", tmp_path / "strict", "--key-file", key_file)
    assert (strict.returncode, strict.stderr.count("\n")) == (2, 1)
    assert "1 of 6 scans could not be read, more than --max-bad 0.1 allows" in strict.stderr


def test_names_that_are_not_utf8(few: BuildOptions, tmp_path: Path, write_png: Callable) -> None:
    dicom.slices(tmp_path / "in" / "ct", stack(4))
    write_png(tmp_path / "in" / "x.png", np.arange(400, dtype=np.uint8).reshape(20, 20))
    folder = os.fsencode(tmp_path / "in")
    os.rename(folder + b"/ct", folder + b"/M\xfcller")
    for name in (b"/br\xfccke.png", b"/br\xfccke.dcm", b"/br\xfccke.txt"):
        Path(os.fsdecode(folder + name)).write_bytes(b"nothing")
    summary = build([tmp_path / "in"], tmp_path / "out", few.model_copy(update={"max_bad": 1.0}))
    assert (summary.scans, summary.quarantined) == (2, {"refused": 2})
    assert sorted(left_out(tmp_path / "out")) == [rf"br\xfccke.{suffix}" for suffix in ("dcm", "png", "txt")]


def test_what_cannot_be_opened_neither_hangs_nor_ends_a_build(
    few: BuildOptions, tmp_path: Path, write_png: Callable
) -> None:
    write_png(tmp_path / "in" / "x.png", np.arange(400, dtype=np.uint8).reshape(20, 20))
    for name in ("IM0001", "pipe.png"):
        os.mkfifo(tmp_path / "in" / name)
    for name in ("IM0002", "link.png"):
        (tmp_path / "in" / name).symlink_to("nowhere")
    (tmp_path / "in" / "loop").symlink_to("loop")
    summary = build([tmp_path / "in"], tmp_path / "out", few.model_copy(update={"max_bad": 1.0, "frames": True}))
    assert summary.scans == 1
    gone = ("refused", "cannot be opened: No such file or directory")
    assert left_out(tmp_path / "out") == {
        "IM0001": ("skipped", "no regular file"),
        "pipe.png": ("skipped", "no regular file"),
        "IM0002": gone,
        "link.png": gone,
        "loop": ("refused", "cannot be opened: Too many levels of symbolic links"),
    }


def test_headers_that_make_two_sources_one_end_no_build(few: BuildOptions, tmp_path: Path) -> None:
    # One series UID over slices and over what calls itself a mosaic of the same size.
    dicom.slices(tmp_path / "in" / "a", stack(4))
    dicom.slices(tmp_path / "in" / "b", stack(2), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    summary = build([tmp_path / "in"], tmp_path / "out", few.model_copy(update={"max_bad": 1.0}))
    assert (summary.sources, summary.scans, summary.quarantined) == (2, 1, {"refused": 1})


def refusal(source: Source, out: Path) -> Quarantined:
    """The line of a source that its reader fails at in a way of its own."""
    (out / ".partial").mkdir()
    plan = ShardPlan("shard-000000.tar", [PlannedSource(source, "0" * 32, "0" * 32)])
    *_, result = run(ShardTask(plan, out, b"k" * 32, "xr", "zstd"))
    assert isinstance(result, ShardResult)
    assert result.record is None
    line, *others = result.quarantine
    assert [(other.path, other.kind, other.first) for other in others] == [
        (name, "refused", source.files[0]) for name in source.files[1:]
    ]
    assert {other.reason for other in others} <= {line.reason}
    return line


def test_reasons_repeat_nothing_of_an_unforeseen_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom.slices(tmp_path / "Meier", stack(4))
    (source,), _ = group(scan_headers(sorted((tmp_path / "Meier").iterdir())), tmp_path)
    for name in ("disk", "bug"):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patched:
        gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "Meier"))
        patched.setattr(convert, "scratch_folder", Mock(side_effect=gone))
        assert refusal(source, tmp_path / "disk").reason == "cannot be read: No such file or directory (4 files)"
    # A kind of source that its reader was not made for.
    line = refusal(replace(source, kind="dicom-image"), tmp_path / "bug")
    assert line.path == "Meier/0000.dcm"
    assert re.fullmatch(r"ValueError in images\.py, line \d+ \(4 files\)", line.reason)
