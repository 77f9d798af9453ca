"""The real data sets, as their users have them."""

import pytest

from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.finetune.cases.channels import read_channels
from scanfoundry.finetune.cases.volumes import read_labels
from scanfoundry.finetune.checks.check import check_cases
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover

CONTRASTS = ("t1", "t1gd", "t2", "flair")


def found(task, **data):
    return discover(LabelledData(**data), task)


def test_hippocampus_in_folders(real_data):
    root = real_data / "msd_task04_hippocampus"
    cases = found(SegmentationTask(), images=root / "imagesTr", labels=root / "labelsTr", modality="mr")
    assert len(cases.cases) == len(list((root / "imagesTr").iterdir()))
    assert cases.left_out == {}
    assert check_cases(cases.cases[:8], SegmentationTask(), cases.classes).highest == 2


@pytest.mark.parametrize("task", [SegmentationTask(), ClassificationTask(), DetectionTask()])
def test_one_folder_of_ultrasound_serves_three_tasks(real_data, task):
    root = real_data / "busi_breast_ultrasound"
    cases = found(task, path=str(root), modality="us")
    assert len(cases.cases) == len(list((root / "images").iterdir()))
    if isinstance(task, ClassificationTask):
        assert cases.classes == ["benign", "malignant", "normal"]
    checked = check_cases(cases.cases[:8], task, cases.classes)  # all with a lesion
    assert (checked.highest, checked.empty) == (int(isinstance(task, SegmentationTask)), 0)


def test_brain_tumours_in_four_contrasts(real_data):
    root = real_data / "brain_tumor_progression_mr"
    data = {"channels": {name: f"*/{name}.nii.gz" for name in CONTRASTS}, "labels": "*/seg.nii.gz"}
    cases = found(SegmentationTask(), path=str(root), patient_regex=r"PGBM-\d+", **data)
    studies = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    assert list(cases.names.values()) == studies
    patients = [keyed_hash(site_key(), "patient", study.split("_")[0]) for study in studies]
    assert [case.patient for case in cases.cases] == patients
    scans = read_channels(cases.cases[0].images)
    assert len({scan.voxels.shape for scan in scans}) == 1
    assert 0 < read_labels(cases.cases[0].target, scans[0]).sum() < 3000


def test_organs_with_names_in_a_list(real_data):
    root = real_data / "totalsegmentator_examples"
    labels = [root / "example_ct_seg.nii.gz", root / "labels.json"]
    cases = found(SegmentationTask(), images=root / "example_ct.nii.gz", labels=labels, modality="ct")
    assert len(cases.cases) == 1
    assert cases.classes[:2] == ["spleen", "kidney_right"]
    assert 12 not in cases.cases[0].stated.values  # no organ has that number
    assert check_cases(cases.cases, SegmentationTask(), cases.classes).highest == len(cases.classes)


def test_chest_radiographs(real_data):
    cases = found(ClassificationTask(), path=str(real_data / "nih_chestxray8_2class"), modality="xr")
    assert cases.classes == ["no_finding", "pneumonia"]
    assert "set data.patient_regex" in cases.warnings[0]
