"""The labels of the real data sets, all of them, against their own description."""

import csv
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from PIL import Image

from scanfoundry.datasets.labels.attach import attach
from scanfoundry.datasets.labels.label_index import LabelIndex, open_labels
from scanfoundry.datasets.labels.tables.table import Columns
from scanfoundry.datasets.readers import read
from scanfoundry.datasets.readers.labels import LabelRef, Labels


def known(label_index: LabelIndex, relative: str) -> LabelRef:
    ref = label_index.of(relative)
    assert ref is not None, relative
    return ref


def attached(label_index: LabelIndex, root: Path, relative: str) -> Labels:
    (scan,) = read(root / relative)
    return attach(scan, known(label_index, relative))


def test_breast_ultrasound(real_data: Path) -> None:
    root = real_data / "busi_breast_ultrasound"
    label_index = open_labels([root / "labels.csv"], [root / "masks"], False, Columns(asked=("mask_px",)))
    rows = {row["id"]: row for row in csv.DictReader((root / "labels.csv").open())}
    images = sorted(path.relative_to(root).as_posix() for path in (root / "images").iterdir())
    assert label_index.unused(images) == []
    assert len(label_index.claimed) == len(images)
    for relative in images:
        row, labels = rows[Path(relative).stem], attached(label_index, root, relative)
        assert labels.classes == {"class": row["class"]}
        assert labels.targets["mask_px"] == float(row["mask_px"])
        assert labels.mask is not None
        assert np.array_equal(labels.mask[0], np.asarray(Image.open(root / "masks" / f"{row['id']}.png")))
        assert labels.mask.sum() == int(row["mask_px"])
        assert labels.boxes is not None
        assert labels.left_out == 0
        if row["class"] == "normal":
            assert labels.boxes == ()
        else:
            (box,) = labels.boxes  # of the whole mask
            inside = np.argwhere(labels.mask)
            assert box.low == tuple(inside.min(0))
            assert box.high == tuple(inside.max(0) + 1)


def test_boxes_out_of_ultrasound_masks(real_data: Path) -> None:
    root = real_data / "busi_breast_ultrasound"
    label_index = open_labels([], [root / "masks"], True)
    for path in sorted((root / "images").iterdir())[::7]:
        labels = attached(label_index, root, f"images/{path.name}")
        assert labels.mask is not None
        assert labels.boxes is not None
        assert bool(labels.boxes) == bool(labels.mask.any())


def test_blood_cells(real_data: Path) -> None:
    root = real_data / "bccd_blood_cells"
    label_index = open_labels([root / "Annotations"], [], False)
    images = sorted(path.relative_to(root).as_posix() for path in (root / "JPEGImages").iterdir())
    assert label_index.unused(images) == []
    counted: Counter[str] = Counter()
    degenerate = 0
    for path in sorted((root / "Annotations").iterdir()):
        for each in ElementTree.parse(path).getroot().iter("object"):
            x0, y0, x1, y1 = (int(each.findtext(f"bndbox/{n}") or 0) for n in ("xmin", "ymin", "xmax", "ymax"))
            empty = x0 >= x1 or y0 >= y1
            degenerate += empty
            counted[each.findtext("name") or ""] += not empty
    found: Counter[str] = Counter()
    lows, highs = [], []
    for relative in images:
        labels = attached(label_index, root, relative)
        assert labels.boxes
        assert labels.left_out == 0
        found.update(box.label for box in labels.boxes)
        lows += [box.low for box in labels.boxes]
        highs += [box.high for box in labels.boxes]
    assert found == counted
    assert label_index.left_out == {"boxes without extent": degenerate}
    assert degenerate == 2
    assert np.min(lows, 0).tolist() == [0, 0, 0]  # counted from 1, the image's edge is reached on both sides
    assert np.max(highs, 0).tolist() == [1, 480, 640]


def test_hippocampus(real_data: Path) -> None:
    root = real_data / "msd_task04_hippocampus"
    label_index = open_labels([], [root / "labelsTr"], False)
    images = sorted(path.name for path in (root / "imagesTr").iterdir())
    assert label_index.unused(images) == []
    for name in images[::5]:
        labels = attached(label_index, root / "imagesTr", name)
        assert labels.mask is not None
        assert labels.mask.dtype == np.uint8
        assert np.array_equal(labels.mask, np.asanyarray(nib.load(root / "labelsTr" / name).dataobj).T)
        assert set(np.unique(labels.mask)) == {0, 1, 2}


def test_label_maps_beside_their_scans(real_data: Path) -> None:
    root = real_data / "totalsegmentator_examples"
    label_index = open_labels([root / "labels.json"], [root], True)
    listed = json.loads((root / "labels.json").read_text())
    scans = sorted(path.name for path in root.glob("*.nii.gz") if not path.name.endswith("_seg.nii.gz"))
    assert {path.name for path in label_index.claimed} == {name.replace(".nii.gz", "_seg.nii.gz") for name in scans}
    assert label_index.unused(scans) == []
    for name in scans:
        mask = name.replace(".nii.gz", "_seg.nii.gz")
        labels = attached(label_index, root, name)
        assert labels.mask is not None
        assert np.array_equal(labels.mask, np.asanyarray(nib.load(root / mask).dataobj).T)
        assert labels.names == {int(value): structure for value, structure in listed[mask].items()}
        assert {box.label for box in labels.boxes or ()} == {
            labels.names[value] for value in np.unique(labels.mask).tolist() if value
        }


def test_brain_tumours_in_the_folder_of_their_study(real_data: Path) -> None:
    root = real_data / "brain_tumor_progression_mr"
    label_index = open_labels([], [root], False)
    scans = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*.nii.gz") if p.name != "seg.nii.gz")
    assert len(label_index.claimed) == len({Path(scan).parent for scan in scans})
    assert label_index.unused(scans) == []
    for relative in scans:
        labels = attached(label_index, root, relative)
        assert labels.mask is not None
        assert set(np.unique(labels.mask)) == {0, 1}


def test_chest_x_rays(real_data: Path) -> None:
    root = real_data / "nih_chestxray8_2class"
    label_index = open_labels([root / "labels.csv"], [], False)
    images = sorted(path.name for path in (root / "images").iterdir())
    assert label_index.unused(images) == []
    assert {known(label_index, name).classes["class"] for name in images} == {"no_finding", "pneumonia"}
    assert all(set(known(label_index, name).classes) == {"class"} for name in images)
    assert any("source_file" in note for note in label_index.notes)
