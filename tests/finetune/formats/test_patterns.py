"""One file per channel: a folder for each study, or a folder for each channel."""

import shutil

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover

NAMES = ("t1", "flair")
PATTERNS = {name: f"*/{name}.nii.gz" for name in NAMES}


@pytest.fixture
def studies(tmp_path, save, cube):
    for study in ("P1_1990", "P1_1991", "P2_1990"):
        for number, name in enumerate(NAMES):
            voxels = cube(number + 5)
            voxels[0, 0, 0] = len(list(tmp_path.rglob("*.nii.gz")))  # equal scans would be stored once
            save(tmp_path / "in" / study / f"{name}.nii.gz", voxels)
        save(tmp_path / "in" / study / "seg.nii.gz", cube(0, True))
    return tmp_path / "in"


def found(root, task=None, channels=PATTERNS, labels="*/seg.nii.gz", **others):
    data = LabelledData(path=str(root), channels=channels, labels=labels, **others)
    return discover(data, task or SegmentationTask())


def test_a_folder_for_each_study(studies):
    cases = found(studies, patient_regex=r"P\d")
    assert list(cases.names.values()) == ["P1_1990", "P1_1991", "P2_1990"]
    assert [int(np.median(image.read().voxels)) for image in cases.cases[0].images] == [5, 6]
    assert len({case.patient for case in cases.cases}) == 2
    assert cases.modalities == ["mr", "mr"]


@pytest.mark.parametrize("regex", [None, r"P\d"])
def test_patients_are_those_of_a_build_of_the_same_folder(studies, tmp_path, regex):
    build([studies], tmp_path / "out", BuildOptions(patient_regex=regex, workers=1, modality="mr"))
    data = DataSet(tmp_path / "out")
    stored = {entry.patient for shard in data.manifest.shards for entry in data.index(shard).samples}
    cases = found(studies, patient_regex=regex)
    # All contrasts of a study, and nothing else but the masks, which this build took for scans.
    assert {case.patient for case in cases.cases} <= stored
    assert not cases.warnings or regex is None
    single = found(studies, channels={"t1": PATTERNS["t1"]}, patient_regex=regex)
    assert [case.patient for case in single.cases] == [case.patient for case in cases.cases]


def test_contrasts_that_are_cases_of_their_own_share_their_patient(tmp_path, save, cube):
    for name in ("a_t1", "a_flair", "b_t1", "b_flair"):
        save(tmp_path / "images" / f"{name}.nii.gz", cube(5))
        save(tmp_path / "labels" / f"{name}.nii.gz", cube(0, True))
    cases = discover(LabelledData(path=str(tmp_path), modality="mr"), SegmentationTask())
    patients = dict(zip(cases.names.values(), (case.patient for case in cases.cases), strict=True))
    assert patients["a_t1"] == patients["a_flair"] != patients["b_t1"] == patients["b_flair"]


def test_a_folder_for_each_channel_and_names_twice_in_the_path(tmp_path, save, cube):
    for case in ("x", "y"):
        for name in NAMES:
            save(tmp_path / name / f"{case}.nii.gz", cube(5))
            save(tmp_path / "brats" / case / f"{case}_{name}.nii.gz", cube(5))
        save(tmp_path / "labels" / f"{case}.nii.gz", cube(0, True))
    by_folder = found(tmp_path, channels={name: name for name in NAMES}, labels="labels")
    assert list(by_folder.names.values()) == ["x", "y"]
    assert "first channel alone" in by_folder.warnings[0]  # t1/x and flair/x: nothing says that they are of one patient
    patterns = {name: f"brats/*/*_{name}.nii.gz" for name in NAMES}
    assert list(found(tmp_path, channels=patterns, labels="labels/*.nii.gz").names.values()) == ["x", "y"]


def test_missing_channels(studies):
    (studies / "P1_1991" / "flair.nii.gz").unlink()
    with pytest.raises(UserError, match=r"of 3 cases in .* 1 lack 'flair': set data\.allow_missing=true"):
        found(studies)
    cases = found(studies, allow_missing=True)
    assert [case.images[1] is None for case in cases.cases] == [False, True, False]
    assert cases.cases[1].image is cases.cases[1].images[0]


def test_classes_of_studies_from_a_list(studies, tmp_path):
    (tmp_path / "l.csv").write_text("id,class\nP1_1990,a\nP1_1991,b\nP2_1990,a\n")
    assert [c.target for c in found(studies, ClassificationTask(), labels=tmp_path / "l.csv").cases] == [0, 1, 0]


def test_mistakes(studies, tmp_path):
    (tmp_path / "l.csv").write_text("id,class\nP1_1990,a\nP1_1991,b\nP9,a\n")
    with pytest.raises(UserError, match="label 'P9' is of no case"):
        found(studies, ClassificationTask(), labels=tmp_path / "l.csv")
    with pytest.raises(UserError, match=r"data\.labels '.*gone' is not below data\.path"):
        found(studies, labels=tmp_path / "gone")
    for channels, message in (
        ({"t1": "*/t9.nii.gz"}, r"'\*/t9.nii.gz' finds no scan"),
        ({"t1": "P1_1990/t1.nii.gz"}, "no '\\*'"),
    ):
        with pytest.raises(UserError, match=message):
            found(studies, channels=channels)
    with pytest.raises(UserError, match=r"data.labels is not given"):
        found(studies, labels=None)
    (studies / "P2_1990" / "t1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"label 'P2_1990/seg.nii.gz' is of no case"):
        found(studies, channels={"t1": "*/t1.nii.gz"})
    shutil.copy(studies / "P1_1990" / "t1.nii.gz", studies / "P1_1990" / "t1.nii")
    with pytest.raises(UserError, match="finds two files of case 'P1_1990'"):
        found(studies, channels={"t1": "*/t1.*"})


def test_patterns_of_images_and_labels(tmp_path, save):
    for k in range(4):
        image = save(tmp_path / "d" / f"p{k}" / f"IMG_{k}.png", np.full((8, 8), k + 1))
        image.rename(image.with_suffix(".PNG"))
        if k < 3:
            save(tmp_path / "d" / f"p{k}" / f"mask_{k}.png", np.eye(8))
    data = {"images": tmp_path / "d" / "*" / "IMG_*.png", "labels": tmp_path / "d" / "*" / "mask_*.png"}
    cases = discover(LabelledData.model_validate(data | {"modality": "us"}), SegmentationTask())
    assert {int(case.image.read().voxels.max()): str(case.target)[-10:] for case in cases.cases} == {
        1: "mask_0.png",
        2: "mask_1.png",
        3: "mask_2.png",
    }
    assert cases.left_out == {"images without a label": 1}
    with pytest.raises(UserError, match=r"state it with patterns, as in data\.images="):
        discover(LabelledData(images=tmp_path / "d", labels=tmp_path / "d", modality="us"), SegmentationTask())
    (tmp_path / "d" / "p0" / "IMG_0.PNG").unlink()
    with pytest.raises(UserError, match=r"label '.*mask_0\.png' is of no case that '.*IMG_\*\.png' finds"):
        discover(LabelledData.model_validate(data | {"modality": "us"}), SegmentationTask())


def test_a_folder_of_images_and_a_pattern_of_labels(tmp_path, save):
    for k in range(3):
        save(tmp_path / "images" / f"x{k}.png", np.full((8, 8), k + 1))
        save(tmp_path / "masks" / f"manual1_x{k}.png", np.eye(8))
        save(tmp_path / "masks" / f"manual2_x{k}.png", np.eye(8))
    data = LabelledData(images=tmp_path / "images", labels=tmp_path / "masks" / "manual2_*.png", modality="us")
    cases = discover(data, SegmentationTask())
    assert [str(case.target)[-14:] for case in cases.cases] == [f"manual2_x{k}.png"[-14:] for k in range(3)]
