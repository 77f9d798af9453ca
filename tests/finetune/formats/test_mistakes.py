"""Every mistake in the data is one clear line of the command line, exit code 2, and nothing is written.

Several are told together, 20 at most.
"""

import gzip
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import yaml

from scanfoundry.configs.errors import MOST_SHOWN
from scanfoundry.launch.cli import main

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
STUNET = {"name": "stunet", "size": "S", "strides": [[2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]]}


@pytest.fixture
def cohort(tmp_path, save, cube):
    """Twelve volumes with label maps."""
    rng = np.random.default_rng(0)
    for i in range(12):
        save(tmp_path / "images" / f"c{i:02d}.nii.gz", rng.normal(size=(8, 6, 4)).astype(np.float32), AFFINE)
        save(tmp_path / "labels" / f"c{i:02d}.nii.gz", cube(0, True), AFFINE)
    return tmp_path


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `scanfoundry finetune` here; gives its one line. It must not write or train."""

    def leave(code):
        raise SystemExit(code)

    def run(cohort, **changes):
        content = {
            "run_dir": str(tmp_path / "run"),
            "task": {"name": "segmentation", "classes": ["organ"]},
            "data": {"images": str(cohort / "images"), "labels": str(cohort / "labels"), "modality": "mr"},
            "backbone": STUNET,
            "shots": ["all"],
            "split": {"test_fraction": 0.4},
        }
        content |= changes
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        monkeypatch.setattr(main, "_leave_at_once", leave)
        with pytest.raises(SystemExit) as left:
            main.main(["finetune", str(tmp_path / "study.yaml")])
        said = capsys.readouterr().err
        assert left.value.code == 2, said
        assert said.startswith("scanfoundry: ")
        lines = said.splitlines()
        assert len(lines) == 1 or (
            re.match(r"scanfoundry: \d+ mistakes in ", lines[0]) and len(lines) <= MOST_SHOWN + 2
        )
        assert not (tmp_path / "run").exists()
        return said

    return run


def images(cohort):
    return {"images": str(cohort / "images"), "labels": str(cohort / "labels"), "modality": "mr"}


def replaced(save, folder, array, affine=AFFINE):
    for i in range(12):
        save(folder / f"c{i:02d}.nii.gz", array, affine)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("shape", "mask: shape (4, 6, 7) differs from the scan's (4, 6, 8)"),
        ("affine", "mask: its affine puts it 3.00 mm away from the scan"),
        ("class", "label 2, but classes are ['organ']"),
        ("fraction", "mask: holds other than whole numbers"),
        ("empty", "every label map is empty: there is nothing to segment"),
        ("nan", "holds NaN or infinite voxels"),
    ],
)
def test_label_maps(cohort, command, save, cube, what, expected):
    labels, moved = cube(0, True), AFFINE.copy()
    moved[0, 3] = 3
    nan = np.where(labels > 0, np.nan, 0).astype(np.float32)
    array = {"shape": labels[:7], "class": labels * 2, "fraction": labels / 2, "empty": labels * 0, "nan": nan}
    replaced(save, cohort / "labels", array.get(what, labels), moved if what == "affine" else AFFINE)
    assert expected in command(cohort)


def test_voxels_that_are_nan(cohort, command, save):
    replaced(save, cohort / "images", np.full((8, 6, 4), np.nan, np.float32))
    assert "holds NaN or infinite voxels" in command(cohort)


def test_a_slice_among_volumes(cohort, command, save, cube):
    for folder in ("images", "labels"):
        save(cohort / folder / "c05.nii.gz", cube(1)[:, :, :1], AFFINE)
    assert "c05.nii.gz is a single slice); give one kind" in command(cohort)


def test_all_mistakes_of_a_data_set_are_told_at_once(cohort, command, save, cube):
    """What the lists say and what reading the scans brings to light; each file by its name."""
    path = cohort / "images" / "c03.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-9]))
    save(cohort / "labels" / "c05.nii.gz", cube(0, True)[:7], AFFINE)
    save(cohort / "labels" / "c07.nii.gz", cube(0, True) * 2, AFFINE)
    save(cohort / "labels" / "lost.nii.gz", cube(0, True), AFFINE)
    save(cohort / "images" / "c09.nii.gz", np.full((8, 6, 4), np.nan, np.float32), AFFINE)
    lines = command(cohort).splitlines()
    assert lines[0].startswith(f"scanfoundry: 5 mistakes in {cohort / 'labels'}:")
    assert len(lines) == 6
    for name in (
        "label 'lost' has no image",
        "c03.nii.gz: not a readable",
        "c05.nii.gz: mask: shape",
        "label 2",
        "c09",
    ):
        assert sum(name in line for line in lines) == 1


def test_of_many_mistakes_the_number_is_told(tmp_path, command):
    rows = [f"gone{n}.nii.gz,x" for n in range(30)]
    (tmp_path / "here.nii.gz").write_bytes(b"")
    (tmp_path / "l.csv").write_text("\n".join(["image,class", "here.nii.gz,y", *rows]))
    lines = command(
        tmp_path, task={"name": "classification"}, data={"path": str(tmp_path / "l.csv"), "modality": "mr"}
    ).splitlines()
    assert lines[0].endswith("30 mistakes in " + str(tmp_path / "l.csv") + ":")
    assert lines[-1].strip() == "and 10 more"


def test_one_case(cohort, command):
    for folder in ("images", "labels"):
        for i in range(1, 12):
            (cohort / folder / f"c{i:02d}.nii.gz").unlink()
    assert "case of 1: " in command(cohort)


def test_damaged_scan(cohort, command):
    path = cohort / "images" / "c03.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-9]))
    assert "c03.nii.gz: not a readable NIfTI" in command(cohort)


def test_missing_label_folder_and_label_without_image(cohort, command, save, cube):
    save(cohort / "labels" / "zz.nii.gz", cube(1))
    assert "label 'zz' has no image of that name" in command(cohort)
    shutil.rmtree(cohort / "labels")
    assert "labels' do not exist" in command(cohort)


def test_two_images_of_one_name(cohort, command):
    nib.save(nib.load(cohort / "images" / "c01.nii.gz"), cohort / "images" / "c01.nii")
    assert "'c01'" in command(cohort)


def test_a_patient_in_two_splits(cohort, command):
    (cohort / "split.json").write_text(json.dumps({"train": ["c00", "c01"], "test": ["c02", "c03"]}))
    data = images(cohort) | {"patient_regex": r"c\d"}
    said = command(cohort, data=data, split={"file": str(cohort / "split.json")})
    assert "1 patients are on both sides" in said


def test_corrupt_lists(cohort, command):
    task = {"name": "classification"}
    (cohort / "l.csv").write_bytes(b"id,class\nc00,\xff\xff\n")
    assert "cannot read the list" in command(cohort, task=task, data=images(cohort) | {"labels": str(cohort / "l.csv")})
    (cohort / "dataset.json").write_text('{"labels": {')
    data = {"path": str(cohort / "dataset.json")}
    assert "cannot read" in command(cohort, data=data)
    assert "cannot read the split" in command(cohort, split={"file": str(cohort / "dataset.json")})


def test_what_is_no_data_set(cohort, command):
    (cohort / "empty").mkdir()
    assert "is no data set that is read: dataset.json" in command(cohort, data={"path": str(cohort / "empty")})
    assert "no data: give data.path" in command(cohort, data={"modality": "mr"})
    for kind in ("archive", "list", "dataset", "shards"):
        assert str(cohort / "empty") in command(cohort, data={"path": str(cohort / "empty"), "format": kind})
    data = {"path": str(cohort / "empty"), "format": "channels"}
    assert "data.format=channels needs data.channels" in command(cohort, data=data)
    assert "does not exist" in command(cohort, data={"path": str(cohort / "gone"), "format": "archive"})
    data = {"images": str(cohort / "images"), "labels": str(cohort / "labels")}
    assert "nothing tells the modality of the channel 'image': set data.modality" in command(cohort, data=data)
