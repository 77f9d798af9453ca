"""A study of label maps with gaps, from the files to the predictions and what the report says of the classes."""

import json

import nibabel as nib
import numpy as np
import pytest

from scanfoundry.datasets.readers import ReadError
from scanfoundry.finetune.cases.label_values import LabelValues, consecutive, of_names
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.run_study import prepare, run


@pytest.fixture
def gaps(tmp_path):
    """Volumes of the values 2 and 5, the last three without any; 9 in one of them alone."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for k in range(12):
        labels = np.zeros((12, 10, 8), np.uint16)
        if k < 9:
            labels[2:6, 2:6, 1:5], labels[7:11, 5:9, 2:7] = 2, 5
        image = rng.normal(100, 10, labels.shape) + 40 * labels
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), tmp_path / "images" / f"p{k:02d}.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "labels" / f"p{k:02d}.nii.gz")
    return tmp_path


def test_predictions_hold_the_numbers_of_the_label_maps(study, gaps, tmp_path):
    named = {2: "liver", 5: "tumour", 7: "cyst"}
    schedule = {"steps": 12, "warmup_steps": 1, "lr": 3e-3}
    config = study("segmentation", gaps, plan={"patch": (8, 8, 8)}, schedule=schedule)
    result = run(config.model_copy(update={"task": SegmentationTask(values=named)}))
    described = json.loads((result.model / "model.json").read_text())
    assert described["classes"] == ["liver", "tumour", "cyst"]
    assert described["values"]["read"] == {"2": 1, "5": 2, "7": 3}
    adapter, _ = load_model(result.model)
    assert adapter.spec.labels.written == [2, 5, 7]
    results = json.loads(result.results.read_text())
    rows = {row["name"]: row for row in results["data"]["label_maps"]}
    assert (rows["liver"]["values"], rows["cyst"]["values"]) == ([2], [7])
    assert rows["liver"]["training_voxels"] == 64 * rows["liver"]["training_cases"] > 0
    assert rows["cyst"]["training_cases"] + rows["cyst"]["test_cases"] == 0
    said = " ".join(results["warnings"])
    assert "no label map that was read holds 'cyst' (value 7)" in said
    assert "label maps are empty" in said
    html = result.report.read_text()
    assert "Classes of the label maps" in html
    assert "<td>liver</td><td>2</td>" in html
    found = predict(result.model, [gaps / "images"], tmp_path / "out", "cpu")
    maps = [np.asarray(nib.load(path).dataobj) for path in found if path.suffix == ".gz"]
    assert set(np.unique(maps)) <= {0, 2, 5, 7}
    table = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert table[0] == "file,output,liver voxels,liver ml,tumour voxels,tumour ml,cyst voxels,cyst ml"
    assert [int(line.split(",")[2]) for line in table[1:]] == [int((each == 2).sum()) for each in maps]


def test_a_class_that_no_training_case_has_is_told(study, gaps):
    for k in range(9):
        path = gaps / "labels" / f"p{k:02d}.nii.gz"
        labels = np.asarray(nib.load(path).dataobj).copy()
        labels[labels == 5] = 0 if k else 5  # the second class is in one case alone
        nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    config = study("segmentation", gaps, shots=[2], plan={"patch": (8, 8, 8)}, schedule={"steps": 2}, seeds=[0, 1, 2])
    result = run(config)
    results = json.loads(result.results.read_text())
    assert results["classes"] == ["label 2", "label 5"]
    told = [one for one in results["warnings"] if "no training case holds" in one]
    made = prepare(config)
    held = {key for key, voxels in made.checked.voxels.items() if voxels[1]}
    cells = {(cell["shots"], cell["seed"]): set(cell["train_cases"]) for cell in results["cells"]}
    without = [seed for (_, seed), cases in cells.items() if not cases & held]
    assert without
    assert sum("'label 5'" in one for one in told) == len(without)
    if not held & {case.key for case in made.sides.test}:
        assert any("no test case holds 'label 5'" in one for one in results["warnings"])


def test_values_and_back():
    labels = np.array([[[0, 1, 2, 3]]], np.uint8)
    classes, values = of_names({300: "b", 2: "a", 4: "b", 9: "c"}, (7,))
    assert (classes, values.written) == (["b", "a", "c"], [300, 2, 9])
    assert values.decode(labels).tolist() == [[[0, 300, 2, 9]]]
    assert values.encode(np.array([[[0, 300, 2, 9, 4, 7]]], np.uint16)).tolist() == [[[0, 1, 2, 3, 1, 255]]]
    assert consecutive(3).decode(labels) is labels
    with pytest.raises(ReadError, match="holds 5, which is none"):
        values.encode(np.array([[[5]]], np.int32))
    with pytest.raises(ValueError, match="classes that are not there"):
        LabelValues(read={1: 2}, written=[1])


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"values": {1: "a"}, "classes": ["a"]}, "leave out task.classes"),
        ({"values": {0: "liver", 1: "a"}}, "0 is the background"),
        ({"ignore": 0}, "0 is the background"),
        ({"values": {3: "a"}, "ignore": 3}, "both task.ignore and a class"),
        ({"classes": ["a", "b"], "ignore": 2}, "both task.ignore and a class"),
        ({"values": {}}, "names no class"),
        ({"values": {255: "ignore"}, "ignore": 255}, "names no class"),
    ],
)
def test_a_task_that_contradicts_itself(task, said):
    with pytest.raises(ValueError, match=said):
        SegmentationTask(**task)
    assert SegmentationTask(values={0: "Background", 2: "a", 255: "Ignore"}, ignore=255)
