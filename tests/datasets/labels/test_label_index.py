"""From lists, drawings and folders of masks to the labels of each scan."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels import Box, LabelRef
from scanfoundry.datasets.labels.label_index import LabelIndex, open_labels
from scanfoundry.datasets.labels.pairing.names import agree, parts_of
from scanfoundry.datasets.labels.tables.table import Columns


def csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def index_of(
    *labels: Path, masks: tuple[Path, ...] = (), boxes: bool = False, asked: tuple[str, ...] = ()
) -> LabelIndex:
    return open_labels(labels, masks, boxes, Columns(asked=asked))


def pngs(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / name)
    return folder


def test_a_list_of_classes_and_numbers(tmp_path: Path) -> None:
    lines = ["Filename;diagnosis;age;grade", "a.png;benign;61;", "p/b.nii.gz;malignant;44.5;2", "1.2.840.5;NA;;3"]
    found = index_of(csv(tmp_path / "l.csv", *lines), asked=("age", "grade"))
    assert found.of("x/a.png") == LabelRef(classes={"diagnosis": "benign"}, targets={"age": 61.0})
    assert found.of("p/b_0000.nii.gz") == LabelRef(
        classes={"diagnosis": "malignant"}, targets={"age": 44.5, "grade": 2.0}
    )
    assert found.of("1.2.840.5.nii") == LabelRef(targets={"grade": 3.0})
    assert found.of("q/b.nii.gz") is None  # another patient's file of the same name
    assert found.of("c.png") is None
    assert found.unused(["x/a.png", "c.png"]) == ["p/b", "1.2.840.5"]


def test_columns_that_are_named_are_taken_as_they_are(tmp_path: Path) -> None:
    path = csv(tmp_path / "l.csv", "case;grade;patient name", "a;2;x", "b;10;y", "c;;z")
    found = open_labels([path], [], False, Columns("case", ("grade", "patient name")))
    assert found.of("a.png") == LabelRef(classes={"grade": "2", "patient name": "x"})
    assert found.of("c.png") == LabelRef(classes={"patient name": "z"})
    for wanted in (Columns("id"), Columns("case", ("sort",)), Columns("case", (), "kind")):
        with pytest.raises(
            UserError, match=r"l\.csv has no column '(id|sort|kind)'; it has: case, grade, patient name"
        ):
            open_labels([path], [], False, wanted)
    boxes = csv(tmp_path / "b.csv", "id,x0,y0,x1,y1,kind", "a,1,2,5,6,RBC", "a,1,2,7,8,")
    ref = open_labels([boxes], [], False, Columns(None, (), "kind")).of("a.png")
    assert ref is not None
    assert ref.boxes is not None
    assert [box.label for box in ref.boxes] == ["RBC", "finding"]
    with pytest.raises(UserError, match="names 'a' twice"):  # of classes, one line for each scan
        open_labels([boxes], [], False, Columns(None, ("kind",)))


def test_boxes_of_a_list(tmp_path: Path) -> None:
    lines = ["id,x0,y0,x1,y1,z0,z1,label,class", "a,1,2,5,6,0,3,mass,bad", "a,4,4,5,9,1,2,,bad", "b,,,,,,,,good"]
    lines += ["c,4,4,4,9,1,2,mass,good"]
    found = index_of(csv(tmp_path / "l.csv", *lines))
    ref = found.of("a.nii.gz")
    assert ref is not None
    assert ref.boxes == (Box((0, 2, 1), (3, 6, 5), "mass"), Box((1, 4, 4), (2, 9, 5), "finding"))
    assert ref.classes == {"class": "bad"}
    assert not ref.flat_boxes
    assert found.of("b.nii.gz") == LabelRef(boxes=(), classes={"class": "good"})
    assert found.left_out == {"boxes without extent": 1}
    flat = index_of(csv(tmp_path / "l.csv", "id,x0,y0,x1,y1,class", "a,1,2,5,6,RBC", "a,1,2,7,8,WBC"))
    assert flat.of("a.png") == LabelRef(boxes=(Box((0, 2, 1), (1, 6, 5)), Box((0, 2, 1), (1, 8, 7))), flat_boxes=True)
    assert "go into a column 'label'" in flat.notes[0]


def test_nothing_that_tells_a_person_travels(tmp_path: Path) -> None:
    columns = ["id", "PatientName", "birth_date", "MRN", "Patient ID", "visit", "comment", "Patient Age", "sex", "nr"]
    columns += ["scanned", "source_file", "laterality", "free"]
    lines = [
        f"s{i},Meier^{i % 2},1960-01-0{i + 1},{i},{i},{20240101 + i % 2},ok,{50 + i},{'FM'[i % 2]},{7000000 + i},"
        f"0{i % 2}.03.2021,x{i % 2}.dcm,{('left', 'right')[i % 2]},word{i}"
        for i in range(8)
    ]
    asked = ("sex", "laterality", "Patient Age")
    found = index_of(csv(tmp_path / "l.csv", ",".join(columns), *lines), asked=asked)
    ref = found.of("s3.dcm.nii") or found.of("s3.nii")
    assert ref is not None
    assert ref.classes == {"sex": "M", "laterality": "right"}
    assert ref.targets == {"Patient Age": 53.0}
    (left,) = [note for note in found.notes if "left out" in note]
    assert set(re.findall("'(.+?)'", left)) == set(columns) - {"id", "sex", "laterality", "Patient Age"}


def test_lists_that_cannot_be_meant(tmp_path: Path) -> None:
    cases = {
        "names 'a' twice": ["id,class", "a,x", "a,y"],
        "no column id": ["scan,class", "a,x"],
        "no number": ["id,x0,y0,x1,y1", "a,1,2,x,4"],
        "more cells": ["id,class", "a,x,y"],
    }
    for reason, lines in cases.items():
        with pytest.raises(UserError, match=reason):
            index_of(csv(tmp_path / "l.csv", *lines))
    with pytest.raises(UserError, match="do not exist"):
        index_of(tmp_path / "gone.csv")
    (tmp_path / "l.csv").write_bytes(b"id,class\na,\xff\n")
    with pytest.raises(UserError, match="cannot read"):
        index_of(tmp_path / "l.csv")


def test_names_that_fit_two(tmp_path: Path) -> None:
    found = index_of(csv(tmp_path / "l.csv", "id,class", "a,x", "p/b,y", "q/b,x"))
    with pytest.raises(UserError, match=r"'a' is both p/a.png and q/a.png"):
        found.unused(["p/a.png", "q/a.png"])
    assert found.of("p/b.png") == LabelRef(classes={"class": "y"})
    with pytest.raises(UserError, match="p/b and q/b"):
        found.of("b.png")
    with pytest.raises(UserError, match="none of its labels"):
        found.unused(["c.png"])


def test_lists_add_up_and_may_not_contradict(tmp_path: Path) -> None:
    first = csv(tmp_path / "1.csv", "id,class,age", "a,x,3")
    second = csv(tmp_path / "2.csv", "id,diagnosis,age", "a,y,3")
    both = index_of(first, second, asked=("age",)).of("a.png")
    assert both == LabelRef(classes={"class": "x", "diagnosis": "y"}, targets={"age": 3.0})
    csv(second, "id,class", "a,y")
    with pytest.raises(UserError, match="different classes for 'class'"):
        index_of(first, second).of("a.png")


def test_coco(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 7, "file_name": "train/a.jpg", "width": 640, "height": 480},
            {"id": 8, "file_name": "b.jpg", "width": 10, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [10.5, 20, 30, 40], "category_id": 3},
            {"id": 2, "image_id": 7, "bbox": [1, 2, 0, 4], "category_id": 3},
            {"id": 3, "image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 3, "iscrowd": 1},
            {"id": 4, "image_id": 9, "bbox": [1, 2, 3, 4], "category_id": 3},
        ],
        "categories": [{"id": 3, "name": "cell"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    found = index_of(tmp_path / "c.json")
    box = Box((0, 20, 10.5), (1, 60, 40.5), "cell")
    assert found.of("a.jpg") == LabelRef(boxes=(box,), flat_boxes=True, size=(480, 640))
    assert found.of("b.jpg") == LabelRef(boxes=(), flat_boxes=True, size=(20, 10))
    assert found.left_out == {"boxes without extent": 1, "regions of a crowd": 1, "boxes of no image": 1}
    far = {"image_id": 8, "bbox": [1, 2, 5, 5], "category_id": 9}
    changes = {
        "box of 'b.jpg' lies within": {"annotations": [far | {"bbox": [0.1, 0.2, 0.5, 0.5], "category_id": 3}]},
        "category 9, which it does not name": {"annotations": [far]},
        "two of its images have one id": {"images": content["images"][:1] * 2},
        "two of its categories have one id": {"categories": content["categories"] * 2},
        "no COCO list": {"images": [{"id": 7, "file_name": "a", "height": float("inf"), "width": 2}]},
    }
    for message, change in changes.items():
        (tmp_path / "c.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            index_of(tmp_path / "c.json")
    content["annotations"][0].pop("bbox")  # type: ignore[attr-defined]
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no COCO list"):
        index_of(tmp_path / "c.json")
    for text in ("{", "[1]", '{"a": 1}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(UserError):
            index_of(tmp_path / "c.json")


def voc(folder: Path, name: str, *boxes: tuple[int, int, int, int]) -> None:
    folder.mkdir(exist_ok=True)
    objects = "".join(
        f"<object><name>cell</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for a, b, c, d in boxes
    )
    size = "<size><width>64</width><height>48</height></size>"
    (folder / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def test_voc_counts_from_one_unless_a_box_begins_at_zero(tmp_path: Path) -> None:
    voc(tmp_path / "v", "a", (1, 1, 64, 48), (5, 6, 5, 9))
    voc(tmp_path / "v", "b")
    found = index_of(tmp_path / "v")
    whole = Box((0, 0, 0), (1, 48, 64), "cell")
    assert found.of("images/a.jpg") == LabelRef(boxes=(whole,), flat_boxes=True, size=(48, 64))
    assert found.of("b.jpg") == LabelRef(boxes=(), flat_boxes=True, size=(48, 64))
    assert found.left_out == {"boxes without extent": 1}
    voc(tmp_path / "v", "c", (0, 3, 7, 9))
    found = index_of(tmp_path / "v")
    ref = found.of("c.jpg")
    assert ref is not None
    assert ref.boxes == (Box((0, 3, 0), (1, 9, 7), "cell"),)
    assert "counted from 0" in found.notes[0]


def test_all_files_of_voc_that_are_none_at_once(tmp_path: Path) -> None:
    for name, text in (("a", "<annotation>"), ("b", "<annotation/>"), ("c", "<html/>")):
        (tmp_path / f"{name}.xml").write_text(text)
    with pytest.raises(UserError, match=r"(?s)2 mistakes in .*a\.xml is no .*c\.xml is no "):
        index_of(tmp_path)


def test_voc_that_is_none(tmp_path: Path) -> None:
    for text in ("<annotation>", "<html/>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'):
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(UserError):
            index_of(tmp_path / "a.xml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Pascal VOC file"):
        index_of(tmp_path / "empty")


def test_masks_are_claimed_and_found_by_name(tmp_path: Path) -> None:
    masks = pngs(tmp_path / "masks", "a.png", "p/b.png")
    found = index_of(masks=(masks,), boxes=True)
    assert found.claimed == {(masks / "a.png").resolve(), (masks / "p/b.png").resolve()}
    assert found.of("a.jpg") == LabelRef(mask=masks / "a.png", boxes_from_mask=True)
    assert found.of("x/p/b.jpg") == LabelRef(mask=masks / "p" / "b.png", boxes_from_mask=True)
    assert found.of("q/b.jpg") is None


def test_marked_masks_beside_their_scans(tmp_path: Path) -> None:
    folder = pngs(tmp_path, "benign (1).png", "benign (1)_mask.png", "benign (1)_mask_1.png", "b.png", "b_seg.png")
    found = index_of(masks=(folder,))
    assert {path.name for path in found.claimed} == {"benign (1)_mask.png", "benign (1)_mask_1.png", "b_seg.png"}
    assert found.of("benign (1).png") == LabelRef(
        mask=folder / "benign (1)_mask.png", more_masks=(folder / "benign (1)_mask_1.png",)
    )
    assert found.of("b.png") == LabelRef(mask=folder / "b_seg.png")
    pngs(folder, "b_mask.png")
    with pytest.raises(UserError, match="two masks of one scan"):
        index_of(masks=(folder,)).of("b.png")


def test_a_mask_of_all_scans_in_its_folder(tmp_path: Path) -> None:
    pngs(tmp_path, "case1/t1.png", "case1/t2.png", "case1/seg.png", "case2/t1.png", "case2/seg.png", "case3/t1.png")
    found = index_of(masks=(tmp_path,))
    for case in ("case1", "case2"):
        assert found.of(f"{case}/t1.png") == LabelRef(mask=tmp_path / case / "seg.png")
    assert found.of("case1/t2.png") == found.of("case1/t1.png")
    assert found.of("case3/t1.png") is None
    assert found.unused(["case1/t1.png", "case1/t2.png", "case2/t1.png", "case3/t1.png"]) == []


def test_a_dicom_series_goes_by_its_folder(tmp_path: Path) -> None:
    found = index_of(csv(tmp_path / "l.csv", "id,class", "case1,x", "case2,y"))
    assert found.of("case1/ser2/IM0001") == LabelRef(classes={"class": "x"})
    assert found.of("site/case2/1.2.3.dcm") == LabelRef(classes={"class": "y"})
    assert found.of("case1/a.png") is None  # images are named one by one
    assert found.unused(["case1/ser1/IM1", "case1/ser2/IM9"]) == ["case2"]


def nifti(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), path)


def test_decathlon_and_nnunet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        nifti(tmp_path / "labelsTr" / f"{name}.nii.gz")
    pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("a", "gone")]
    content = {"labels": {"0": "background", "1": "liver"}, "training": pairs, "modality": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = index_of(tmp_path / "dataset.json")
    mask = tmp_path / "labelsTr" / "a.nii.gz"
    assert found.of("imagesTr/a.nii.gz") == LabelRef(mask=mask, names={1: "liver"})
    assert found.of("a.nii.gz") == LabelRef(mask=mask, names={1: "liver"})
    assert found.left_out == {"masks listed, but not there": 1}
    content = {
        "labels": {"background": 0, "whole": [1, 2], "core": 1},
        "channel_names": {"0": "T1", "1": "T2"},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = index_of(tmp_path / "dataset.json", boxes=True)
    expected = LabelRef(mask=mask, names={1: "core"}, boxes_from_mask=True)
    assert found.of("imagesTr/a_0000.nii.gz") == found.of("imagesTr/a_0001.nii.gz") == expected
    assert len(found.claimed) == 2
    assert found.unused(["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]) == ["b", "b_0001"]


def test_options_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no masks are given"):
        index_of(csv(tmp_path / "l.csv", "id,class", "a,x"), boxes=True)
    (tmp_path / "n.json").write_text('{"1": "liver"}')
    with pytest.raises(UserError, match="but no masks"):
        index_of(tmp_path / "n.json")
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="no readable mask"):
        index_of(masks=(tmp_path / "masks",))


_part = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0."), min_size=1).filter(lambda t: t.strip() == t)


@given(st.lists(_part, min_size=1, max_size=4), st.lists(_part, max_size=3), st.sampled_from([".png", ".nii.gz", ""]))
def test_a_path_agrees_with_its_own_ends(parts: list[str], before: list[str], suffix: str) -> None:
    parts[-1] = parts[-1].removesuffix("_0000") or "x"
    short, long = parts_of("/".join(parts) + suffix), parts_of("/".join(before + parts) + ".png")
    assert agree(short, long) == agree(long, short) == len(parts)
    assert agree((*short[:-1], short[-1] + "?"), long) == 0
