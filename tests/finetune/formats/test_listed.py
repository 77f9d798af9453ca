"""Lists of cases: CSV and JSON with columns of paths."""

import json

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover


@pytest.fixture
def scans(tmp_path, save, cube):
    for name in "abc":
        for channel in ("t1", "t2"):
            save(tmp_path / "s" / f"{name}_{channel}.nii.gz", cube(5))
        save(tmp_path / "m" / f"{name}.nii.gz", cube(0, True))
    return tmp_path


def found(path, task, **others):
    return discover(LabelledData(path=str(path), **{"modality": "mr", **others}), task)


def csv(folder, *lines):
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def test_several_images_by_column_with_patients_and_sides(scans):
    lines = ["image_t1,image_t2,mask,patient,split"]
    lines += [f"s/{n}_t1.nii.gz,s/{n}_t2.nii.gz,m/{n}.nii.gz,1,{s}" for n, s in (("a", "train"), ("b", "test"))]
    cases = found(csv(scans, *lines), SegmentationTask(), modality=None)
    assert (cases.channels, cases.modalities) == (["t1", "t2"], ["mr", "mr"])
    assert {case.patient for case in cases.cases} == {keyed_hash(site_key(), "patient", "1")}
    assert list(cases.official.values()) == ["train", "test"]
    assert str(cases.cases[1].target).endswith("m/b.nii.gz")


def test_columns_named_by_data_channels_and_missing_ones(scans):
    path = csv(scans, "first;second;class", "s/a_t1.nii.gz;s/a_t2.nii.gz;x", "s/b_t1.nii.gz;;y")
    channels = {"T1": "first", "T2": "second"}
    with pytest.raises(UserError, match="1 lack 'T2'"):
        found(path, ClassificationTask(), channels=channels)
    cases = found(path, ClassificationTask(), channels=channels, allow_missing=True)
    assert [case.images[1] is None for case in cases.cases] == [False, True]
    assert ([case.target for case in cases.cases], cases.classes) == ([0, 1], ["x", "y"])


def test_values(scans):
    path = csv(scans, "image,age", "s/a_t1.nii.gz,61.5", "s/b_t1.nii.gz,", "s/c_t1.nii.gz,7")
    cases = found(path, RegressionTask(label_column="age"))
    assert [case.target for case in cases.cases] == [61.5, 7.0]
    assert cases.left_out == {"images without a label": 1}
    with pytest.raises(UserError, match=r"'old' of 's/a_t1.nii.gz' in column 'age' is no number"):
        found(csv(scans, "image,age", "s/a_t1.nii.gz,old"), RegressionTask(label_column="age"))


def test_classes_that_are_numbers_keep_their_order(scans):
    path = csv(scans, "image,grade", "s/a_t1.nii.gz,10", "s/b_t1.nii.gz,9")
    assert found(path, ClassificationTask(label_column="grade")).classes == ["9", "10"]


def test_json_lists_and_monai_datalists(scans):
    rows = [{"image": [f"s/{n}_t1.nii.gz", f"s/{n}_t2.nii.gz"], "label": f"m/{n}.nii.gz"} for n in "abc"]
    (scans / "list.json").write_text(json.dumps(rows))
    assert found(scans / "list.json", SegmentationTask()).channels == ["channel_0", "channel_1"]
    (scans / "list.json").write_text(json.dumps({"training": rows[:2], "test": rows[2:]}))
    assert list(found(scans / "list.json", SegmentationTask()).official.values()) == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,label", "s/a_t1.nii.gz,m/q.nii.gz"], "q.nii.gz' does not exist"),
        (["image,label", "s/q.nii.gz,m/a.nii.gz"], "q.nii.gz' does not exist"),
        (["image,label", "s/a_t1.nii.gz,m/a.nii.gz", "s/a_t1.nii.gz,m/a.nii.gz"], "names 's/a_t1.nii.gz' twice"),
        (["scan,label", "x,y"], "no column 'image' of paths"),
        (["image,lesion", "x,y"], "no column 'label'"),
        (["image,label"], "lists no case"),
        (["image,label", ",m/a.nii.gz"], "case 1 names no image"),
        (["image,label", "s/a_t1.nii.gz,"], "has a label for segmentation"),
        (["image,label", "s/a_t1.nii.gz,m/a.nii.gz,1"], "more cells"),
    ],
)
def test_mistakes_in_a_csv(scans, lines, message):
    with pytest.raises(UserError, match=message):
        found(csv(scans, *lines), SegmentationTask())


@pytest.mark.parametrize(
    ("text", "message"), [("[1", "cannot read"), ("[1]", "no list of cases"), ("{}", "lists no case")]
)
def test_mistakes_in_a_json(scans, text, message):
    (scans / "list.json").write_text(text)
    with pytest.raises(UserError, match=message):
        found(scans / "list.json", SegmentationTask())


def test_bytes_that_are_no_text(scans):
    (scans / "list.csv").write_bytes(b"image,label\n\xff\xfe,\x00\n")
    with pytest.raises(UserError, match="cannot read the list"):
        found(scans / "list.csv", SegmentationTask())
