"""MedMNIST's files, and others of their form."""

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.finetune.cases.volumes import read_labels
from scanfoundry.finetune.config.study import LabelledData, SplitConfig
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover
from scanfoundry.finetune.formats.archive import Archive
from scanfoundry.finetune.study.split import split


def found(path, task=None, **others):
    return discover(LabelledData(path=str(path), modality="xr", **others), task or ClassificationTask())


@pytest.fixture
def archive(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for side, count in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{side}_images"] = rng.integers(0, 255, (count, 12, 10), np.uint8)
        arrays[f"{side}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    return tmp_path / "m.npz", arrays


def test_entries_classes_and_the_official_split(archive):
    path, arrays = archive
    cases = found(path)
    assert (cases.classes, [case.target for case in cases.cases[:3]]) == (["0", "1"], [0, 1, 0])
    order = np.random.default_rng(1).permutation(len(cases.cases))
    every = np.concatenate([arrays[f"{side}_images"] for side in ("train", "val", "test")])
    for i in order:  # also backwards
        assert np.array_equal(cases.cases[i].image.read().voxels[0, 0], every[i])
    sides = split(cases, SplitConfig(official=True), [])
    assert (len(sides.pool), len(sides.test)) == (9, 4)
    assert sides.test == cases.cases[9:]
    assert "names no patients" in cases.warnings[0]
    with pytest.raises(UserError, match="has a label for segmentation"):
        found(path, SegmentationTask())


def test_patients_are_those_of_a_build(archive, tmp_path):
    build([archive[0]], tmp_path / "out", BuildOptions(workers=1, modality="xr"))
    data = DataSet(tmp_path / "out")
    stored = {entry.patient for shard in data.manifest.shards for entry in data.index(shard).samples}
    assert {case.patient for case in found(archive[0]).cases} == stored


def test_masks_and_values(tmp_path):
    masks = np.zeros((4, 9, 9), np.uint8)
    masks[:, 2:4, 2:4] = 1
    np.savez(tmp_path / "s.npz", train_images=masks * 9, train_labels=masks)
    case = found(tmp_path / "s.npz", SegmentationTask()).cases[2]
    assert np.array_equal(read_labels(case.target, case.image.read())[0], masks[0])
    np.savez(tmp_path / "v.npz", train_images=masks, train_labels=np.array([1.5, 2, 3, 4]))
    assert [c.target for c in found(tmp_path / "v.npz", RegressionTask()).cases] == [1.5, 2, 3, 4]
    np.savez(tmp_path / "w.npz", train_images=masks, train_labels=np.ones((4, 3), np.uint8))
    with pytest.raises(UserError, match=r"3 labels for each image; choose one: task.label_column=label-0"):
        found(tmp_path / "w.npz")


def test_damage(archive, tmp_path):
    content = archive[0].read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-40])
    with pytest.raises(UserError, match=r"cannot read .*cut\.npz"):
        found(tmp_path / "cut.npz")
    with pytest.raises(UserError, match="holds no entry 99"):
        Archive(archive[0]).entry(99)
    with pytest.raises(UserError, match=r"leave out data.labels"):
        found(archive[0], labels=tmp_path)


def test_real_archives(real_data):
    for name, count, tested in (("adrenalmnist3d", 1584, 298), ("pneumoniamnist_subset", 5030, 624)):
        cases = found(real_data / "medmnist" / f"{name}.npz")
        assert (len(cases.cases), cases.classes) == (count, ["0", "1"])
        assert len(split(cases, SplitConfig(official=True), []).test) == tested
    lung = found(real_data / "msd_task06_lung_patches2d" / "lung_2mm_patches.npz", SegmentationTask())
    scan = lung.cases[0].image.read()
    assert scan.voxels.shape == (1, 1, 48, 48)
    assert read_labels(lung.cases[0].target, scan).max() <= 1


IMAGES = np.zeros((4, 9, 9), np.uint8)


def saved(folder, **arrays):
    np.savez(folder / "n.npz", **arrays)
    return folder / "n.npz"


def test_images_without_a_label_are_counted(tmp_path):
    for labels in ([0, 1, np.nan, 1], [[0.0], [1.0], [np.nan], [1.0]]):
        cases = found(saved(tmp_path, images=IMAGES, labels=np.array(labels)))
        assert ([case.target for case in cases.cases], cases.classes) == ([0, 1, 1], ["0", "1"])
        assert cases.left_out == {"images without a label": 1}
        assert cases.official == {}
    values = found(saved(tmp_path, images=IMAGES, labels=np.array([0.5, np.nan, 2, 3])), RegressionTask())
    assert ([case.target for case in values.cases], values.left_out) == ([0.5, 2, 3], {"images without a label": 1})
    half = saved(tmp_path, train_images=IMAGES, train_labels=np.array([0, 1, 0, 1]), test_images=IMAGES)
    assert (len(found(half).cases), found(half).left_out) == (4, {"images without a label": 4})


def test_one_of_several_labels_some_of_them_unknown(tmp_path):
    labels = np.array([[0.0, 5.0], [1.0, np.nan], [np.nan, 7.0], [2.0, 8.0]])
    path = saved(tmp_path, images=IMAGES, labels=labels)
    cases = found(path, RegressionTask(label_column="label-1"))
    assert ([case.target for case in cases.cases], cases.left_out) == ([5.0, 7.0, 8.0], {"images without a label": 1})
    with pytest.raises(UserError, match="2 labels for each image"):
        found(path, RegressionTask())


def test_other_names_of_the_sides(tmp_path):
    path = saved(tmp_path, training_images=IMAGES, training_labels=np.array([0, 1, 0, 1]), valid_images=IMAGES)
    assert set(found(path).official.values()) == {"train"}
    assert found(path).left_out == {"images without a label": 4}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "names no label of any image"),
        ({"images": IMAGES, "labels": np.full(4, np.nan)}, "names no label of any image"),
        ({"images": IMAGES, "labels": np.eye(4, dtype=np.uint8)}, "single 1, so these may be classes"),
        ({"images": IMAGES, "labels": np.arange(3)}, "does not go with"),
        ({"X": IMAGES, "y": np.arange(4)}, "holds no stack of images"),
        ({"train_images": IMAGES, "holdout_images": IMAGES}, "'holdout_images' is none of images"),
    ],
)
def test_archives_that_are_no_labelled_data(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        found(saved(tmp_path, **arrays))


def test_measured_values_are_no_classes(tmp_path):
    images = np.zeros((30, 9, 9), np.uint8)
    with pytest.raises(UserError, match=r"are measured, no classes: task\.name=regression"):
        found(saved(tmp_path, images=images, labels=np.arange(30) / 7))
    with pytest.raises(UserError, match="has no labels 'grade': leave out"):
        found(saved(tmp_path, images=IMAGES, labels=np.arange(4)), ClassificationTask(label_column="grade"))


class _Grade(RegressionTask):
    """A plug-in's task whose column has another name than ours."""

    label_column: str = "grade"


def test_a_default_that_was_written_down_is_still_a_default(tmp_path):
    path = saved(tmp_path, images=IMAGES, labels=np.arange(4) / 3)
    for task in (_Grade(), _Grade.model_validate(_Grade().model_dump(mode="json"))):  # as a worker reads it
        assert [case.target for case in found(path, task).cases] == pytest.approx([0, 1 / 3, 2 / 3, 1])
