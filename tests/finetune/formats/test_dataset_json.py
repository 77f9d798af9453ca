"""nnU-Net's and the Decathlon's dataset.json describe everything themselves."""

import json

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.finetune.cases.label_values import IGNORE
from scanfoundry.finetune.cases.volumes import read_labels
from scanfoundry.finetune.checks.check import check_cases
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover


@pytest.fixture
def nnunet(tmp_path, save, cube):
    """Three training cases and one test case of two channels."""
    for name, side in (("a", "Tr"), ("b", "Tr"), ("c", "Tr"), ("z", "Ts")):
        for channel in (0, 1):
            save(tmp_path / f"images{side}" / f"{name}_{channel:04d}.nii.gz", cube(10 + channel))
        save(tmp_path / f"labels{side}" / f"{name}.nii.gz", cube(0, True))
    return describe(tmp_path)


def describe(folder, **others):
    content = {
        "channel_names": {"0": "T1", "1": "CT"},
        "labels": {"background": 0, "organ": 1, "tumour": 3},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content | others))
    return folder


def found(path, task=None, **others):
    return discover(LabelledData(path=str(path), **others), task or SegmentationTask())


@pytest.mark.parametrize("given", ["path", "file", "images"])
def test_nnunet_describes_itself(nnunet, given):
    where = {"path": str(nnunet / "dataset.json")} if given == "file" else {given: str(nnunet)}
    cases = discover(LabelledData.model_validate(where), SegmentationTask())
    assert cases.classes == ["organ", "tumour"]
    assert cases.cases[0].stated.values == {1: "organ", 3: "tumour"}
    assert (cases.channels, cases.modalities) == (["T1", "CT"], ["mr", "ct"])
    assert sorted(cases.names.values()) == ["imagesTr/a", "imagesTr/b", "imagesTr/c", "imagesTs/z"]
    assert sorted(cases.official.values()) == ["test", "train", "train", "train"]
    scans = [[image.read() for image in case.images] for case in cases.cases]
    assert all([int(scan.voxels.max()) for scan in case] == [10, 11] for case in scans)
    assert read_labels(cases.cases[0].target, scans[0][0]).sum() == 18


def test_images_and_dataset_json_apart_hash_as_a_build_of_the_images(nnunet):
    data = LabelledData(images=nnunet / "imagesTr", labels=nnunet / "dataset.json")
    cases = discover(data, SegmentationTask())
    assert {case.key for case in cases.cases} == {
        keyed_hash(site_key(), "scan", f"{name}_0000.nii.gz") for name in "abc"
    }
    # The channels of a case are one study, which is the patient where nothing names one: see datasets.study.
    assert cases.cases[0].patient == keyed_hash(site_key(), "patient", "./a")


def test_decathlon_volumes_of_a_4d_file_are_channels(tmp_path, save, cube):
    pairs = []
    for name in ("x", "y"):
        save(tmp_path / "imagesTr" / f"{name}.nii.gz", np.stack([cube(1), cube(2), cube(3)], -1))
        save(tmp_path / "labelsTr" / f"{name}.nii.gz", cube(0, True))
        pairs.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    content = {"modality": {"0": "FLAIR", "1": "T1w", "2": "ADC"}, "labels": {"0": "background", "1": "edema"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"training": pairs, "test": []}))
    cases = found(tmp_path)
    assert (cases.channels, cases.classes, cases.official) == (["FLAIR", "T1w", "ADC"], ["edema"], {})
    assert [int(image.read().voxels.max()) for image in cases.cases[1].images] == [1, 2, 3]
    assert found(tmp_path, DetectionTask()).classes == ["edema"]


def test_colours_of_nnunet_are_one_file(tmp_path, save):
    for name in ("a", "b"):
        save(tmp_path / "imagesTr" / f"{name}_0000.png", np.arange(12 * 10 * 3).reshape(12, 10, 3) % 250)
        save(tmp_path / "labelsTr" / f"{name}.png", np.ones((12, 10)))
    names = {"0": "R", "1": "G", "2": "B"}
    describe(tmp_path, channel_names=names, file_ending=".png", labels={"background": 0, "organ": 1})
    cases = found(tmp_path, modality="micr")
    assert (cases.channels, len(cases.cases)) == (["image"], 2)
    assert cases.cases[0].image.read().voxels.shape == (3, 1, 12, 10)


def test_missing_channels_are_counted_or_allowed(nnunet):
    (nnunet / "imagesTr" / "b_0001.nii.gz").unlink()
    (nnunet / "imagesTr" / "c_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"of 4 cases in .* 2 lack 'CT': set data.allow_missing"):
        found(nnunet)
    cases = found(nnunet, allow_missing=True)
    assert [case.images[1] is None for case in cases.cases] == [False, True, True, False]


@pytest.mark.parametrize(
    ("others", "classes"),
    [
        ({"labels": {"background": "0", "organ": "1", "tumour": "3"}}, ["organ", "tumour"]),
        ({"labels": {"background": 0, "organ": [1], "tumour": 3.0}}, ["organ", "tumour"]),
        ({"labels": {"0": "background", "1": "organ"}}, ["organ"]),
        ({"file_ending": ".NII.GZ"}, ["organ", "tumour"]),
        ({"file_ending": "nii.gz"}, ["organ", "tumour"]),
        ({"channel_names": ["T1", "CT"]}, ["organ", "tumour"]),
    ],
)
def test_what_has_one_reading_only(nnunet, others, classes):
    cases = found(describe(nnunet, **others))
    assert (cases.classes, cases.channels, len(cases.cases)) == (classes, ["T1", "CT"], 4)


def test_upper_case_files_and_files_of_another_ending(nnunet, save, cube):
    for path in sorted(nnunet.rglob("*.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    save(nnunet / "imagesTr" / "thumb.png", cube(1)[:, :, 0])
    cases = found(nnunet)
    assert (len(cases.cases), cases.left_out) == (4, {"scans that do not end with file_ending '.nii.gz'": 1})


def test_pairs_of_several_images_and_without_a_mask(nnunet):
    both = [[f"imagesTr/{name}_{number:04d}.nii.gz" for number in (0, 1)] for name in "ab"]
    pairs = [{"image": each, "label": f"labelsTr/{name}.nii.gz"} for name, each in zip("ab", both, strict=True)]
    pairs += [{"image": "imagesTr/c_0000.nii.gz", "label": None}, {"image": "d.nii.gz", "label": "labelsTr/d.nii.gz"}]
    cases = found(describe(nnunet, training=pairs))
    assert sorted(cases.names.values()) == ["imagesTr/a", "imagesTr/b"]
    assert cases.left_out["cases listed without a mask"] == cases.left_out["masks listed, but not there"] == 1


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"labels": {"background": 0, "organs": {"liver": 1}}}, "label 'organs' is {\"liver\": 1}: one whole number"),
        ({"labels": {"background": 0, "organ": "one"}}, "label 'organ' is \"one\": one whole number"),
        ({"labels": {"background": 0, "organ": True}}, "label 'organ' is true"),
        ({"labels": {"background": 0, "organ": 1.5, "lung": -1}}, r"(?s)2 mistakes .*'organ' is 1\.5.*'lung' is -1"),
        ({"labels": {"background": 0, "organ": 1, "lung": "1"}}, "'organ' and 'lung' are both label 1"),
        ({"labels": ["background", "organ"]}, '\'labels\', as in {"labels": {"background": 0, "liver": 1}}'),
        ({"channel_names": {"0": "T1", "2": "CT"}}, "must be numbered from 0 on"),
        ({"file_ending": ".mha"}, r"no scan has its file_ending '\.mha'; there are: \.nii\.gz"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "'whole' is a region of several labels"),
        ({"channel_names": {"first": "T1"}}, "channels must be numbered"),
        ({"channel_names": {"0": "T1"}}, "is channel 1, but dataset.json names 1"),
        ({"channel_names": {"0": "noise", "1": "CT"}}, "nothing tells the modality of the channel 'noise'"),
        ({"labels": [1]}, "no dataset.json"),
    ],
)
def test_what_is_not_supported_is_said(nnunet, others, message):
    with pytest.raises(UserError, match=message):
        found(describe(nnunet, **others))


@pytest.mark.parametrize("task", [{}, {"classes": ["organ"]}, {"values": {1: "organ"}}])
def test_the_ignore_label_is_left_out(nnunet, save, cube, task):
    describe(nnunet, labels={"background": 0, "organ": 1, "ignore": 2})
    for path in (nnunet / "labelsTr").iterdir():
        labels = cube(0, True)
        labels[5:] = 2
        save(path, labels)
    cases = found(nnunet, SegmentationTask(**task))
    assert cases.classes == ["organ"]
    assert cases.cases[0].stated.ignored == (2,)
    checked = check_cases(cases.cases, SegmentationTask(**task), cases.classes)
    assert (checked.classes, checked.ignored) == (["organ"], 3)
    scan = cases.cases[0].image.read()
    assert np.unique(read_labels(cases.cases[0].target, scan, checked.values)).tolist() == [0, 1, IGNORE]
    with pytest.raises(UserError, match="label 'ignore': a detection looks at whole scans"):
        found(nnunet, DetectionTask())


def test_two_values_of_one_name_are_one_class(nnunet, save, cube):
    describe(nnunet, labels={"0": "background", "1": "kidney", "2": "kidney", "4": "cyst"})
    for path in [*(nnunet / "labelsTr").iterdir(), *(nnunet / "labelsTs").iterdir()]:
        save(path, cube(0, True) * 2)
    cases = found(nnunet)
    checked = check_cases(cases.cases, SegmentationTask(), cases.classes)
    assert (checked.classes, checked.values.written) == (["kidney", "cyst"], [1, 4])
    assert [*checked.voxels.values()] == [[18, 0]] * 4
    save(next((nnunet / "labelsTr").iterdir()), cube(0, True) * 3)
    with pytest.raises(UserError, match=r"label 3, but classes are \['kidney', 'cyst'\] with the values 1, 2, 4"):
        check_cases(cases.cases, SegmentationTask(), cases.classes)


def test_classes_given_by_hand_override_regions(nnunet):
    describe(nnunet, labels={"background": 0, "whole": [1, 2], "core": [2]})
    assert found(nnunet, SegmentationTask(classes=["edema", "core"])).classes == ["edema", "core"]


def test_corrupt_and_of_another_task(nnunet):
    with pytest.raises(UserError, match=r"for classification give data.images"):
        found(nnunet, ClassificationTask())
    (nnunet / "dataset.json").write_text('{"labels": ')
    with pytest.raises(UserError, match=r"cannot read .*dataset\.json"):
        found(nnunet)


def test_labels_without_an_image_are_counted(nnunet, save, cube):
    save(nnunet / "labelsTr" / "lost.nii.gz", cube(1))
    save(nnunet / "imagesTr" / "new_0000.nii.gz", cube(1))
    assert found(nnunet).left_out == {"labels without an image": 1}


def test_numbered_cases_of_which_some_are_labelled(tmp_path, save, cube):
    for k in range(4):
        save(tmp_path / "imagesTr" / f"gt_{k:04d}.nii.gz", cube(k + 1))
    for k in (0, 2):
        save(tmp_path / "labelsTr" / f"gt_{k:04d}.nii.gz", cube(0, True))
    cases = found(describe(tmp_path, channel_names={"0": "CT"}))
    assert [int(case.image.read().voxels.max()) for case in cases.cases] == [1, 3]
    for channel in (0, 1):  # the same as cases of two channels
        for k in range(4):
            save(tmp_path / "imagesTr" / f"gt_{k:04d}_{channel:04d}.nii.gz", cube(10 * k + channel))
    for k in range(4):
        (tmp_path / "imagesTr" / f"gt_{k:04d}.nii.gz").unlink()
    cases = found(describe(tmp_path))
    assert [[int(image.read().voxels.max()) for image in case.images] for case in cases.cases] == [[0, 1], [20, 21]]


def test_files_of_the_same_names_beside_the_images_are_no_cases(nnunet, save, cube):
    for name in ("a", "b"):
        save(nnunet / "predictions" / f"{name}.nii.gz", cube(0, True))
    cases = found(nnunet)
    assert sorted(cases.names.values()) == ["imagesTr/a", "imagesTr/b", "imagesTr/c", "imagesTs/z"]


def test_one_mask_of_scans_in_two_folders_is_a_mistake(tmp_path, save, cube):
    save(tmp_path / "scans" / "a_0000.nii.gz", cube(9))
    save(tmp_path / "predictions" / "a.nii.gz", cube(0, True))
    save(tmp_path / "labelsTr" / "a.nii.gz", cube(0, True))
    describe(tmp_path, channel_names={"0": "CT"})
    with pytest.raises(UserError, match="'predictions/a' and 'scans/a' would both have the mask"):
        found(tmp_path)
