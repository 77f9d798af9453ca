import shutil

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.datasets.identity import keyed_hash, patient_of, site_key
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import Boxes, discover


def data(root, labels, **others):
    return LabelledData(images=root / "images", labels=root / labels, modality="mr", **others)


def test_nnunet_names_pair_up_and_patients_are_those_of_the_shards(volumes):
    found = discover(data(volumes, "labels"), SegmentationTask())
    assert len(found.cases) == 24
    case = found.cases[3]
    assert str(case.image) == str(volumes / "images" / "Doe_03_0000.nii.gz")
    assert str(case.target) == str(volumes / "labels" / "Doe_03.nii.gz")
    assert case.patient == keyed_hash(site_key(), "patient", patient_of("Doe_03_0000.nii.gz"))
    grouped = discover(data(volumes, "labels", patient_regex=r"Doe_(\d)"), SegmentationTask())
    assert len({case.patient for case in grouped.cases}) == 3


def test_csv_of_classes(slices):
    found = discover(data(slices, "labels.csv"), ClassificationTask())
    assert found.classes == ["lesion", "none"]
    assert [case.target for case in found.cases[:2]] == [1, 0]


def test_csv_of_boxes_with_scans_without(slices, tmp_path):
    (tmp_path / "boxes.csv").write_text("file,x0,y0,x1,y1\ns01.png,1,2,5,8\ns01.png,7,7,9,9\ns03.png,,,,\n")
    listed = LabelledData(images=slices / "images", labels=tmp_path / "boxes.csv", modality="us")
    found = discover(listed, DetectionTask())
    assert found.cases[1].target == Boxes.of([((0, 2, 1, 1, 8, 5), 0), ((0, 7, 7, 1, 9, 9), 0)])
    assert [len(case.target) for case in found.cases].count(0) == 39


def test_real_lists(real_data):
    folder = real_data / "busi_breast_ultrasound"
    found = discover(data(folder, "labels.csv"), ClassificationTask())
    assert found.classes == ["benign", "malignant", "normal"]
    xray = discover(data(real_data / "nih_chestxray8_2class", "labels.csv"), ClassificationTask())
    assert xray.classes == ["no_finding", "pneumonia"]
    assert len(discover(data(folder, "masks"), DetectionTask()).cases) == len(found.cases)


def test_images_without_a_label_are_counted(volumes, tmp_path):
    shutil.copytree(volumes / "images", tmp_path / "images")
    (tmp_path / "labels").mkdir()
    shutil.copy(volumes / "labels" / "Doe_01.nii.gz", tmp_path / "labels")
    found = discover(data(tmp_path, "labels"), SegmentationTask())
    assert (len(found.cases), found.left_out) == (1, {"images without a label": 23})
    assert [case.target for case in found.unlabelled] == [None] * 23
    assert not {case.key for case in found.unlabelled} & {case.key for case in found.cases}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,kind\ns01,a\n", "no column 'class'"),
        ("id,class\ns01,a\ns02,a\n", "1 classes"),
        ("id,class\ns01,a\ns01,b\n", "twice"),
        ("id,class\ns01,a\nzz,b\n", "'zz'"),
        ("id,class\ns01,\n", "no scan has any"),
    ],
)
def test_bad_lists_are_one_clear_line(slices, tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    listed = LabelledData(images=slices / "images", labels=tmp_path / "labels.csv", modality="us")
    with pytest.raises(UserError, match=message):
        discover(listed, ClassificationTask())


def test_missing_folders_and_label_without_image(volumes, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        discover(data(tmp_path, "labels"), SegmentationTask())
    (tmp_path / "images").mkdir()
    shutil.copy(volumes / "images" / "Doe_01_0000.nii.gz", tmp_path / "images")
    shutil.copytree(volumes / "labels", tmp_path / "labels")
    with pytest.raises(UserError, match="has no image"):
        discover(data(tmp_path, "labels"), SegmentationTask())


def test_all_that_is_wrong_with_a_list_is_told_at_once(slices, tmp_path):
    (tmp_path / "l.csv").write_text("id, class\ns01,lesion\ns01,none\nS02,none\nzz,lesion\ns03,other\ns04,none\n")
    listed = LabelledData(images=slices / "images", labels=tmp_path / "l.csv", modality="us")
    with pytest.raises(UserErrors) as caught:
        discover(listed, ClassificationTask(classes=["lesion", "none"]))
    told = [
        line.replace(f"{tmp_path / 'l.csv'}", "L").replace(str(slices / "images"), "I")
        for line in caught.value.mistakes
    ]
    assert told == [
        "L names 's01' twice (lines 2 and 3); give one line for each scan",
        "label 'S02' has no image of that name in I (there is s02.png: names must agree in case too)",
        "label 'zz' has no image of that name in I",
        "L: class 'other' is not among task.classes ['lesion', 'none'] ('s03')",
    ]


def test_a_label_whose_image_cannot_be_read(slices, tmp_path):
    (tmp_path / "images").mkdir()
    shutil.copy(slices / "images" / "s01.png", tmp_path / "images")
    (tmp_path / "images" / "s02.dcm").write_bytes(b"no header")
    (tmp_path / "l.csv").write_text("id,class\ns01,a\ns02.dcm,b\n")
    listed = LabelledData(images=tmp_path / "images", labels=tmp_path / "l.csv", modality="us")
    with pytest.raises(UserError, match=r"s02\.dcm is there, but: named as DICOM"):
        discover(listed, ClassificationTask(classes=["a", "b"]))


def numbered(root, save, images, masks):
    for folder, names in (("images", images), ("masks", masks)):
        for name in names.split():
            save(root / folder / f"{name}.png", np.ones((8, 8)))
    return LabelledData(path=str(root), modality="us")


def test_numbers_of_scans_are_no_channels(tmp_path, save):
    names = " ".join(f"IMG_{k:04d}" for k in range(12))
    found = discover(numbered(tmp_path, save, names, names[: 5 * 9]), SegmentationTask())
    assert (found.channels, len(found.cases), len(found.unlabelled)) == (["image"], 5, 7)
    assert all(str(case.image)[-8:] == str(case.target)[-8:] for case in found.cases)


def test_channels_are_numbered_alike(tmp_path, save):
    images = "a_0000 a_0001 b_0000 b_0001 c_0000 c_0001 topogram"
    found = discover(numbered(tmp_path, save, images, "a b"), SegmentationTask())
    assert found.channels == ["channel_0", "channel_1"]
    assert [[str(image)[-10:] for image in case.images] for case in found.cases] == [
        ["a_0000.png", "a_0001.png"],
        ["b_0000.png", "b_0001.png"],
    ]
    assert len(found.unlabelled) == 1
    assert found.left_out == {"images without a label": 1, "scans without a label that are of no channel": 1}


@pytest.mark.parametrize("images", ["a_0000 a_0001 a_0002 b_0005", "a_0000 a_0001", "a_2020 a_2021 b_2020"])
def test_numbers_that_may_be_channels_or_scans_are_asked_about(tmp_path, save, images):
    with pytest.raises(UserError, match=r"may be the mask of .*data\.channels=\{a: "):
        discover(numbered(tmp_path, save, images, "a" if "b" not in images else "a b"), SegmentationTask())


def test_classes_of_numbered_scans(tmp_path, save):
    names = [f"IMG_{k:04d}" for k in range(6)]
    for name in names:
        save(tmp_path / "images" / f"{name}.png", np.ones((8, 8)))
    (tmp_path / "l.csv").write_text("id,class\n" + "".join(f"{name},{name[-1] > '1'}\n" for name in names[:4]))
    listed = LabelledData(images=tmp_path / "images", labels=tmp_path / "l.csv", modality="us")
    found = discover(listed, ClassificationTask())
    assert (found.channels, len(found.cases)) == (["image"], 4)
