"""Boxes: COCO, VOC, CSV with classes, of masks."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.checks.findings import boxes_of_mask, findings
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.formats import Boxes, discover


@pytest.fixture
def pictures(tmp_path, save):
    for name in ("a", "b", "c"):
        save(tmp_path / "images" / f"{name}.png", np.arange(20 * 30).reshape(20, 30) % 250)
    return tmp_path


def found(folder, labels, task=None):
    return discover(LabelledData(images=folder / "images", labels=labels, modality="us"), task or DetectionTask())


def boxes(cases, task=None):
    """Boxes by the name of their case, on its scan."""
    return {
        cases.names[case.key]: findings(case, case.image.read(), task or DetectionTask(), cases.classes)
        for case in cases.cases
    }


def coco(folder, **others):
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "height": 20, "width": 30} for i, n in enumerate("abc")],
        "categories": [{"id": 7, "name": "mass"}, {"id": 3, "name": "cyst"}],
        "annotations": [
            {"image_id": 0, "bbox": [1, 2, 3, 4], "category_id": 7, "iscrowd": 0},
            {"image_id": 0, "bbox": [9, 9, 2, 2], "category_id": 3},
            {"image_id": 1, "bbox": [0, 0, 30, 20], "category_id": 3, "iscrowd": 1},
            {"image_id": 1, "bbox": [5, 5, 0, 4], "category_id": 3},
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content | others))
    return folder / "coco.json"


def test_coco_keeps_scans_without_a_box_and_leaves_out_crowds(pictures):
    cases = found(pictures, coco(pictures))
    assert cases.classes == ["cyst", "mass"]
    assert boxes(cases) == {
        "a": Boxes.of([((0, 2, 1, 1, 6, 4), 1), ((0, 9, 9, 1, 11, 11), 0)]),
        "b": Boxes.of([]),
        "c": Boxes.of([]),
    }
    assert cases.left_out == {"regions of a crowd": 1, "boxes without extent": 1}
    with pytest.raises(UserError, match=r"box is of class 'cyst', which is not among task.classes"):
        found(pictures, coco(pictures), DetectionTask(classes=["mass"]))


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"annotations": [{"image_id": "0", "bbox": [1, 2, 3, 4]}]}, "'image_id' is '0' there, 'id' of an image 0"),
        ({"annotations": [{"image_id": 0, "segmentation": [[1, 2, 3]]}]}, "an annotation of 'a.png' has no 'bbox'"),
        ({"annotations": [{"image_id": 0, "bbox": [1, None, 3, 4]}]}, "four numbers are needed"),
        ({"annotations": [{"image_id": 0, "bbox": [1, 3, 4]}]}, "four numbers are needed"),
        (
            {"images": [{"id": i, "file_name": "a.png"} for i in range(2)]},
            "two of its images have the file_name 'a.png'",
        ),
    ],
)
def test_what_is_wrong_with_a_coco_file_is_said(pictures, others, said):
    with pytest.raises(UserError, match=said) as refused:
        found(pictures, coco(pictures, **others))
    assert "Error" not in str(refused.value)


def test_boxes_of_another_size_are_refused(pictures):
    images = [{"id": 0, "file_name": "a.png", "height": 40, "width": 60}]
    cases = found(pictures, coco(pictures, images=images))
    with pytest.raises(UserError, match=r"a\.png: its boxes were drawn on .* 1 x 40 x 60"):
        boxes(cases)


def test_a_list_of_boxes_with_a_class_column(pictures):
    (pictures / "b.csv").write_text("file,x0,y0,x1,y1,kind\na.png,1,2,4,6,RBC\na.png,1,2,9,9,WBC\nb.png,,,,,\n")
    task = DetectionTask(label_column="kind")
    cases = found(pictures, pictures / "b.csv", task)
    assert (cases.classes, [len(each) for each in boxes(cases).values()]) == (["RBC", "WBC"], [2, 0, 0])
    with pytest.raises(UserError, match="no column 'sort'"):
        found(pictures, pictures / "b.csv", DetectionTask(label_column="sort"))


def test_spellings_of_a_class_of_boxes(pictures):
    (pictures / "b.csv").write_text("file, xmin, ymin, xmax, ymax, Class\na.png,1,2,4,6,mass\nb.png,1,2,9,9,Mass\n")
    with pytest.raises(UserError, match=r"'Mass' \(1 boxes\) and 'mass' \(1 boxes\): task\.classes=\[mass\] takes"):
        found(pictures, pictures / "b.csv")
    cases = found(pictures, pictures / "b.csv", DetectionTask(classes=["mass"]))
    assert boxes(cases)["b"] == Boxes.of([((0, 2, 1, 1, 9, 9), 0)])
    (pictures / "b.csv").write_text("file,x0,y0,x1,y1\na.png,0.1,0.2,0.4,0.5\nb.png,0.2,0.2,0.4,0.5\n")
    with pytest.raises(UserError, match=r"(?s)2 mistakes .*'a.png' \(line 2\) lies within the first voxel"):
        found(pictures, pictures / "b.csv")


@pytest.mark.parametrize(
    ("box", "message"),
    [("1,2,90,6", "over the edge: drawn at another size"), ("40,2,50,6", "outside"), ("a,2,3,4", "is no number")],
)
def test_boxes_that_are_not_of_the_scan(pictures, box, message):
    (pictures / "b.csv").write_text(f"file,x0,y0,x1,y1\na.png,{box}\n")
    with pytest.raises(UserError, match=message):
        boxes(found(pictures, pictures / "b.csv"))


def test_flat_boxes_do_not_fit_a_volume(tmp_path, save, cube):
    save(tmp_path / "images" / "a.nii.gz", cube(1))
    (tmp_path / "b.csv").write_text("file,x0,y0,x1,y1\na,1,2,3,4\n")
    with pytest.raises(UserError, match=r"drawn on .* 1 x \? x \?"):
        boxes(found(tmp_path, tmp_path / "b.csv"))


def test_masks_as_components_classes_or_instances(pictures, save):
    mask = np.zeros((20, 30))
    mask[1:6, 1:6], mask[1:6, 10:16], mask[10:18, 2:9], mask[19, 29] = 1, 2, 2, 1
    for name in "ab":
        save(pictures / "masks" / f"{name}.png", mask if name == "a" else mask * 0)
    drawn = {"one": (0, 1, 1, 1, 6, 6), "two": (0, 1, 10, 1, 6, 16), "three": (0, 10, 2, 1, 18, 9)}
    one_class = boxes(found(pictures, pictures / "masks"))
    assert [box for box, _ in one_class["a"].listed()] == list(drawn.values())
    assert len(one_class["b"]) == 0
    two = DetectionTask(classes=["x", "y"])
    several = boxes(found(pictures, pictures / "masks", two), two)["a"]
    assert sorted(several.labels.tolist()) == [0, 1, 1]
    whole = DetectionTask(masks="instances")
    assert len(boxes(found(pictures, pictures / "masks", whole), whole)["a"]) == 2
    save(pictures / "masks" / "a.png", mask * 2)
    with pytest.raises(UserError, match=r"a\.png: value 4, but the classes of findings are"):
        boxes(found(pictures, pictures / "masks", two), two)


@given(arrays(np.uint8, (3, 5, 4), elements=st.integers(0, 4)), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_instances_against_a_plain_loop(mask, least):
    wanted = []
    for value in range(1, 5):
        places = np.argwhere(mask == value)
        if len(places) >= least:
            wanted.append((*places.min(0), *(places.max(0) + 1)))
    assert [box for box, _ in boxes_of_mask(mask, "instances", least, 1).listed()] == wanted


@given(st.tuples(*[st.integers(0, 4)] * 3), st.tuples(*[st.integers(1, 5)] * 3))
@settings(max_examples=30, deadline=None)
def test_a_block_is_its_own_box(low, size):
    mask = np.zeros((9, 9, 9), np.uint8)
    high = tuple(a + n for a, n in zip(low, size, strict=True))
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 2
    assert boxes_of_mask(mask, "components", 1, 3) == Boxes.of([((*low, *high), 1)])


def test_real_blood_cells(real_data):
    root = real_data / "bccd_blood_cells"
    cases = discover(LabelledData(path=str(root), modality="micr"), DetectionTask())
    assert cases.classes == ["Platelets", "RBC", "WBC"]
    assert len(cases.cases) == len(list((root / "JPEGImages").iterdir()))
    assert cases.left_out == {"boxes without extent": 2}
    scan = Scan(np.zeros((3, 1, 480, 640), np.uint8), (1, 1, 1))  # reading the shape alone, all are of it
    every = [findings(case, scan, DetectionTask(), cases.classes) for case in cases.cases]
    labels = Counter(label for each in every for label in each.labels.tolist())
    assert labels[1] > labels[2] > 0
