"""Which files are of one study: by their paths, by DICOM's StudyInstanceUID; and builds from before that was kept."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery import sources
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.datasets.labels.pairing.study import shared_studies, studies_of
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, SamplingPlan
from scanfoundry.datasets.shards import tables
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.format import SampleEntry
from scanfoundry.datasets.shards.reader import DataSet


def groups(files: Iterable[str]) -> set[frozenset[str]]:
    found = defaultdict(set)
    for file, study in studies_of(files).items():
        found[study].add(file)
    return {frozenset(members) for members in found.values()}


def test_a_study_of_one_file_is_not_shared() -> None:
    files = ["a/t1.nii.gz", "a/flair.nii.gz", "b/t1.nii.gz", "c.png"]
    shared = shared_studies(studies_of(files))
    assert shared.keys() == {"a/t1.nii.gz", "a/flair.nii.gz"}
    assert len(set(shared.values())) == 1


def test_contrasts_of_a_study_are_one_patient_of_a_build(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a/t1", "a/flair", "b/t1", "b/flair", "c"):
        path = tmp_path / "in" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.normal(size=(9, 10, 11)).astype(np.float32))
    build([tmp_path / "in"], tmp_path / "out", BuildOptions(workers=1))
    data = DataSet(tmp_path / "out")
    assert data.manifest.patients == 3
    stored = Counter(entry.patient for shard in data.manifest.shards for entry in data.index(shard).samples)
    assert sorted(stored.values()) == [1, 2, 2]


@pytest.mark.parametrize(
    "studies",
    [
        [["sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz", "sub-1/ses-1/dwi/sub-1_ses-1_dwi.nii.gz"], ["sub-1/ses-2/x.nii"]],
        [["a/sub-1/T1w.nii", "a/sub-1/bold.nii"], ["b/sub-1/T1w.nii"], ["b/sub-2/T1w.nii"]],
        [["sub-1_T1w.nii", "sub-1_T2w.nii"], ["sub-10_T1w.nii"], ["sub-1_ses-1_T1w.nii"]],
        [["p1_19950329/t1.nii.gz", "p1_19950329/t1gd.nii.gz", "p1_19950329/flair.nii.gz"], ["p1_19951017/t1.nii.gz"]],
        [["i/B_001_0000.nii.gz", "i/B_001_0001.nii.gz"], ["i/B_002_0000.nii.gz", "i/B_002_0001.nii.gz"]],
        [["B_001_t1ce.nii.gz", "B_001_flair.nii.gz", "B_001-T2w.nii.gz"], ["B_002_t1ce.nii.gz"]],
        [["s1/ct.nii.gz", "s1/PET.nii.gz"], ["s2/ct.nii.gz"]],
        [["hippocampus_001.nii.gz"], ["hippocampus_002.nii.gz"], ["hippocampus_003.nii.gz"]],
        [["case_0000.png"], ["case_0001.png"], ["case_0002.png"]],  # numbers that count patients
        [["a_0000.png"], ["a_0001.png"], ["a_0002.png"], ["b_0000.png"], ["b_0001.png"]],
        [["a_0000.png"], ["b_0000.png"]],
        [["a_0001.png"], ["a_0002.png"], ["b_0001.png"], ["b_0002.png"]],
        [[f"{name}_{number:04d}.png"] for name in "ab" for number in range(11)],
        [["MR/1.nii"], ["CT/1.nii"]],  # CHAOS: other patients
        [["t1.v2.nii.gz"], ["t1.v3.nii.gz"]],
        [["ct"], ["x.dcm"]],
    ],
)
def test_paths_that_name_a_study(studies: list[list[str]]) -> None:
    files = [file for study in studies for file in study]
    expected = {frozenset(study) for study in studies}
    assert groups(files) == groups(reversed(files)) == expected


def entries(folder: Path) -> list[SampleEntry]:
    data = DataSet(folder)
    return [entry for shard in data.manifest.shards for entry in data.index(shard).samples]


def study_of(folder: Path, key: bytes, files: Iterable[str]) -> dict[str, str]:
    stored = {entry.key: entry.study for entry in entries(folder)}
    return {file: stored[keyed_hash(key, "scan", file)[:20]] for file in files}


def volume(seed: int, shape: tuple[int, int, int] = (12, 14, 10)) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def test_a_study_is_of_one_patient_where_that_is_known(key_file: Path, tmp_path: Path, write_nifti: Callable) -> None:
    """The pattern says that the two contrasts of 'case' are of two patients."""
    names = ["A1/case_t1.nii.gz", "A1/case_t2.nii.gz", "B1/case_t1.nii.gz"]
    for number, name in enumerate(names):
        write_nifti(tmp_path / "in" / name, volume(number))
    found = {}
    for rule in (None, r"^(\w)", r"(t\d)"):
        out = tmp_path / f"out{len(found)}"
        build([tmp_path / "in"], out, BuildOptions(key_file=key_file, workers=1, patient_regex=rule))
        found[rule] = study_of(out, site_key(key_file), names)
    for rule, together in ((None, True), (r"^(\w)", True), (r"(t\d)", False)):
        one, two, other = (found[rule][name] for name in names)
        assert (one == two) == together
        assert other not in (one, two)
        assert all(len(study) == 32 for study in (one, two, other))
    assert found[None][names[0]] != found[r"^(\w)"][names[0]]


def test_parts_of_one_file(key_file: Path, tmp_path: Path, write_nifti: Callable) -> None:
    """Volumes of a 4D file are of one study; entries of an .npz are people."""
    write_nifti(tmp_path / "in" / "bold.nii.gz", volume(0, (12, 14, 30)).reshape(12, 14, 10, 3))
    np.savez(tmp_path / "in" / "mnist.npz", train_images=np.random.default_rng(0).integers(0, 255, (4, 28, 28, 3)))
    build([tmp_path / "in"], tmp_path / "out", BuildOptions(key_file=key_file, workers=1))
    sizes = Counter(entry.study for entry in entries(tmp_path / "out"))
    assert sorted(sizes.values()) == [1, 1, 1, 1, 3]


def test_the_study_in_a_dicom_header(real_data: Path, key_file: Path, tmp_path: Path) -> None:
    """The tumour's T1 and mask of one study; that study's UID is nowhere, nor is any other."""
    import pydicom

    source = real_data / "dicom_mixed"
    for name in ("series_tcia_pgbm001", "series_hippocrop", "series_siemens_ct_j2k"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(source / name)
    options = BuildOptions(key_file=key_file, workers=2, max_bad=1)
    build([tmp_path / "in"], tmp_path / "out", options)
    key, uids, expected = site_key(key_file), set(), defaultdict(set)
    for path in sorted((tmp_path / "in").glob("*/**/*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        uids |= {header.StudyInstanceUID, header.SeriesInstanceUID}
        expected[keyed_hash(key, "study", f"{header.PatientID}\0{header.StudyInstanceUID}")].add(path.parent.name)
    found = Counter(entry.study for entry in entries(tmp_path / "out") if entry.study in expected)
    assert any(count == 2 and expected[study] >= {"t1post", "mask_tumor"} for study, count in found.items())
    assert len(found) >= 3
    assert len(uids) >= 4
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".jsonl")
    assert not any(uid.encode() in stored for uid in uids)


def test_contrasts_of_real_studies_are_paired(real_data: Path, key_file: Path, tmp_path: Path) -> None:
    """Several time points of a patient: the four contrasts of each are one study, on one grid."""
    source = real_data / "brain_tumor_progression_mr"
    options = BuildOptions(
        key_file=key_file, modality="mr", masks=[source], patient_regex=r"^(PGBM-\d+)", shard_mb=2, workers=2
    )
    build([source], tmp_path / "out", options)
    check(tmp_path / "out")
    scans = {entry.key: entry for entry in entries(tmp_path / "out")}
    studies = defaultdict(set)
    for entry in scans.values():
        studies[entry.study].add((entry.patient, entry.shape, entry.orientation))
    folders = {path.name for path in source.iterdir() if path.is_dir()}
    assert Counter(entry.study for entry in scans.values()) == dict.fromkeys(studies, 4)
    patients = {name.split("_")[0] for name in folders}
    assert (len(studies), len({entry.patient for entry in scans.values()})) == (len(folders), len(patients))
    assert all(len(each) == 1 for each in studies.values())
    config = DataConfig(
        sources=[{"name": "mr", "path": tmp_path / "out", "flip_axes": [2]}],
        crop_3d=(16, 48, 64), batch_3d=6, positives="study", workers=0,
    )  # fmt: skip
    with CropLoader(config, 1) as loader:
        assert loader.plan.alone == {"mr": 0}
        pairs = Counter()
        for _ in range(12):
            made = loader.crops()
            first, second = made.to("cpu").halves()
            for one, two in zip(first.keys, second.keys, strict=True):
                assert one != two
                assert scans[one].study == scans[two].study
                pairs[one, two] += 1
            assert np.array_equal(made.flips[:6], made.flips[6:])
            assert np.array_equal(made.inside[:6], made.inside[6:])
            assert (first.valid == second.valid).all()
            # Registered contrasts of one head: where one is air, so is the other.
            air = [each.voxels <= each.voxels.amin((1, 2, 3, 4), keepdim=True) + 0.2 for each in (first, second)]
            together = (air[0] & air[1]).float().mean()
            assert together > 1.2 * air[0].float().mean() * air[1].float().mean()
        assert len(pairs) > 30


@pytest.fixture
def earlier(cohort: Path, options: BuildOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build as it was before studies were kept."""
    planned, rows_of = sources._planned, tables.rows_of

    def without_column(*given: object) -> NDArray[np.void]:
        rows = rows_of(*given)
        return repack_fields(rows[[name for name in rows.dtype.names or () if name != "study"]])

    monkeypatch.setattr(sources, "_planned", lambda *given: replace(planned(*given), study=""))
    monkeypatch.setattr(tables, "rows_of", without_column)
    build([cohort / "mr"], tmp_path / "old", options.model_copy(update={"modality": "mr"}))
    monkeypatch.undo()
    return tmp_path / "old"


def test_an_earlier_build_is_read_as_before(earlier: Path, data_sets: Path) -> None:
    for file in ("manifest.json", *(shard.name for shard in DataSet(earlier).manifest.shards)):
        assert b'"study"' not in (earlier / file).read_bytes()
    assert "study" not in DataSet(earlier).samples().dtype.names
    assert check(earlier).scans == 24
    streams = []
    for folder in (earlier, data_sets / "mr"):
        for positives in ("views", "crops"):
            config = DataConfig(
                sources=[{"name": "mr", "path": folder}], crop_3d=(8, 8, 8), workers=0, window=2, positives=positives
            )
            with CropLoader(config, 0) as loader:
                streams.append([next(loader).voxels.numpy().tobytes() for _ in range(5)])
    assert streams[0] == streams[2]
    assert streams[1] == streams[3]
    config = config.model_copy(update={"positives": "study", "sources": [config.sources[0].model_copy()]})
    old = config.model_copy(update={"sources": [config.sources[0].model_copy(update={"path": str(earlier)})]})
    with pytest.raises(UserError, match=r"'study': .*old was built before studies were kept; .* a new folder"):
        SamplingPlan(old, 0)
    # The sessions of the cohort are one scan each.
    with pytest.raises(UserError, match=r"none of 24 scans has another one of its study .* take 'crops'"):
        SamplingPlan(config, 0)
