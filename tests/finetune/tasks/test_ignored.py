"""Voxels that nobody has looked at are in no patch's centre, no loss, no number, no calibration and no picture."""

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.finetune.cases.label_values import IGNORE
from scanfoundry.finetune.config.study import AugmentationConfig, ValidationConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.inference.segmented import Segmented
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.run_study import prepare
from scanfoundry.finetune.sample import Validation

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


@pytest.fixture
def partly(tmp_path):
    """Volumes (x, y, z) = (18, 16, 20): values 2 and 5, and two thirds 255."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for k in range(10):
        labels = np.full((18, 16, 20), 255, np.uint8)
        labels[:, :, :7] = 0
        labels[3:8, 3:8, 2:5], labels[10:14, 8:12, 1:6] = 2, 5
        image = rng.normal(100, 10, labels.shape) + 9 * labels
        nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), tmp_path / "images" / f"p{k}.nii.gz")
        nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "labels" / f"p{k}.nii.gz")
    return tmp_path


@pytest.fixture
def adapter(study, partly):
    config = study("segmentation", partly, plan={"patch": (8, 8, 8)})
    made = prepare(config.model_copy(update={"task": SegmentationTask(ignore=255)}))
    assert made.checked.ignored == len(made.checked.digests)
    return adapter_for(made.spec), made


def test_classes_and_what_is_left_out(adapter):
    task, made = adapter
    assert task.spec.classes == ["label 2", "label 5"]
    assert task.spec.values.model_dump() == {"read": {2: 1, 5: 2, 255: IGNORE}, "written": [2, 5], "nearest": False}
    sample = task.load(made.sides.pool[0])
    assert np.unique(sample.truth).tolist() == [0, 1, 2, IGNORE]
    assert np.unique(sample.target).tolist() == [0, 1, 2, IGNORE]


def test_patches_are_of_what_somebody_looked_at(adapter):
    task, made = adapter
    sample = task.load(made.sides.pool[0])
    rng = np.random.default_rng(3)
    centres = np.array([task._centre(sample.target, rng, 0.0) for _ in range(60)])
    assert (centres[:, 0] <= 7).all()  # the first seven slices; without that two thirds would be elsewhere
    assert (np.array([task._centre(sample.target, rng, 1.0)[0] for _ in range(20)]) <= 7).all()
    images, labels = task.batch([sample] * 4, rng, AugmentationConfig(elastic=0.2), 0.5)
    assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORE}
    torch.manual_seed(0)
    model = task.build(build(task.spec.backbone))
    loss = task.loss(model, images, labels)
    assert torch.isfinite(loss)
    assert torch.isfinite(task.loss(model, images, labels * 0 + IGNORE))


def test_weights_of_classes_count_no_ignored_voxel(adapter):
    task, made = adapter
    spec = task.spec.model_copy(update={"loss": task.spec.loss.model_copy(update={"class_weights": "inverse"})})
    sample = task.load(made.sides.pool[0])
    weights = adapter_for(spec).planned([sample]).spec.class_weights
    counts = np.bincount(sample.target.ravel(), minlength=3)[:3]
    assert np.array(weights) == pytest.approx((1 / counts) / (1 / counts).mean())


def test_no_number_looks_there(adapter):
    task, made = adapter
    case = made.sides.pool[0]
    sample = task.load(case)
    perfect = np.where(sample.truth == IGNORE, 0, sample.truth).astype(np.uint8)
    noise = perfect.copy()
    noise[sample.truth == IGNORE] = np.random.default_rng(0).integers(0, 3, (sample.truth == IGNORE).sum())
    for prediction in (perfect, noise):
        record = task.record(case, sample, Segmented(prediction))
        assert record["dice"] == {"label 2": 1.0, "label 5": 1.0}
        assert (set(record["nsd"].values()), set(record["hd95"].values())) == ({1.0}, {0.0})
        picture = task.picture(sample, Segmented(prediction))
        assert np.array_equal(picture["truth"], picture["prediction"])
        (held,) = task.held(sample, Segmented(prediction))
        assert np.array_equal(held.prediction, held.truth)


def test_no_probability_is_taken_there(adapter):
    task, made = adapter
    sample = task.load(made.sides.pool[0])
    torch.manual_seed(0)
    model = task.build(build(task.spec.backbone)).eval()
    made_of = task.predict([model], sample, torch.device("cpu"))
    assert len(made_of.spots) == len(made_of.at_spots) > 0
    known = sample.truth[tuple(made_of.spots.T)]
    assert set(known.tolist()) == {0, 1, 2}
    record = task.record(made.sides.pool[0], sample, made_of)
    assert sum(bins[0] for bins in record["reliability"]) == len(known)
    settled = task.settled(Validation([record], task.held(sample, made_of)), ValidationConfig(fraction=0.2))
    assert settled.spec.temperature > 0


def test_a_scan_of_which_nothing_was_looked_at_has_no_score(adapter):
    task, made = adapter
    case = made.sides.pool[0]
    sample = task.load(case)
    sample.truth, sample.target = np.full_like(sample.truth, IGNORE), np.full_like(sample.target, IGNORE)
    torch.manual_seed(0)
    model = task.build(build(task.spec.backbone)).eval()
    found = task.predict([model], sample, torch.device("cpu"))
    assert task.record(case, sample, found)["score"] is None
    assert np.isfinite(task._centre(sample.target, np.random.default_rng(0), 1.0)).all()
    assert set(np.unique(task.relabelled([model], sample, torch.device("cpu")).target)) <= {0, 1, 2}
