"""The detection task on tiny data: whole scans and windows, several classes, cases without boxes, bad boxes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.config.recipes import Arm
from scanfoundry.finetune.config.study import ValidationConfig
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.formats import discover
from scanfoundry.finetune.metrics.froc import hits_at
from scanfoundry.finetune.run_study import prepare
from scanfoundry.finetune.tasks.detection import Detection
from scanfoundry.finetune.training.loop import train
from scanfoundry.finetune.training.setup import TrainProgress, TrainSetup

CPU = torch.device("cpu")


@pytest.fixture
def nodules(tmp_path):
    """Volumes of 24 x 48 x 48 with one bright cube of 5 voxels of class 1 or 2, every fourth without any."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "nodules" / name).mkdir(parents=True)
    for i in range(12):
        image, mask = rng.normal(100, 5, (48, 48, 24)), np.zeros((48, 48, 24), np.uint8)
        if i % 4:
            x, y, z = rng.integers(2, (40, 40, 16))
            mask[x : x + 5, y : y + 5, z : z + 5] = kind = 1 + i % 2
            image += (80 if kind == 1 else -80) * (mask > 0)
        for folder, voxels in (("images", image.astype(np.float32)), ("masks", mask)):
            nib.save(
                nib.Nifti1Image(voxels, np.diag([1, 1, 1, 1.0])), tmp_path / "nodules" / folder / f"n{i:02d}.nii.gz"
            )
    return tmp_path / "nodules"


def planned(adapter, cases):
    return adapter.surveyed(cases)


def fit(adapter, model, samples, config):
    told = config.schedule, config.augmentation, ValidationConfig(), config.self_training
    return train(adapter, model, samples, TrainSetup(Arm("scratch", "full", False), 0, *told, CPU), TrainProgress())


def nodule_adapter(study, nodules, **task):
    config = study("detection", nodules, plan={"patch": [16, 16, 16], "batch": 3})
    config = config.model_copy(update={"task": DetectionTask(classes=["bright", "dark"], **task)})
    prepared = prepare(config)
    return Detection(prepared.spec), prepared.sides.pool, config


def test_small_nodules_are_looked_for_in_windows(study, nodules):
    adapter, cases, config = nodule_adapter(study, nodules)
    adapter = planned(adapter, cases)
    assert not adapter.whole
    assert adapter.spec.detection.strides[0] == (2, 2, 2)
    samples = [adapter.load(case) for case in cases]
    assert samples[0].image.shape == (1, 24, 48, 48)
    torch.manual_seed(0)
    model = adapter.build(build(adapter.spec.backbone))
    history = fit(adapter, model, samples, config)
    assert np.isfinite([loss for _, loss in history.loss]).all()
    one, two = (adapter.predict([model.eval()] * n, samples[0], CPU) for n in (1, 2))
    assert one.corners.shape == (len(one.scores), 6)
    assert (np.diff(one.scores) <= 0).all()
    assert (one.corners >= 0).all()
    assert (one.corners[:, 3:] <= [24, 48, 48]).all()
    assert two.corners == pytest.approx(one.corners, abs=1e-4)  # two members that are one and the same change nothing
    assert two.scores == pytest.approx(one.scores, abs=1e-5)


def test_squares_are_found_in_windows(study, slices, fixed_key):
    """Trained for real, on cases with and without a square, and found where they are."""
    # The same cases each time: it is short.
    config = study("detection", slices, plan={"patch": [1, 32, 32], "batch": 4})
    key = config.data.model_copy(update={"key_file": fixed_key("of the tests")})
    config = config.model_copy(update={"data": key})
    prepared = prepare(config.model_copy(update={"task": DetectionTask(whole_scan=False)}))
    cases = prepared.sides.pool
    adapter = planned(Detection(prepared.spec), cases)
    samples = [adapter.load(case) for case in cases]
    torch.manual_seed(0)
    model = adapter.build(build(adapter.spec.backbone))
    schedule = config.schedule.model_copy(update={"steps": 120, "warmup_steps": 5, "lr": 2e-3})
    fit(adapter, model, samples, config.model_copy(update={"schedule": schedule}))
    records = [
        adapter.record(case, sample, adapter.predict([model.eval()], sample, CPU))
        for case, sample in zip(cases, samples, strict=True)
    ]
    assert adapter.metrics()["ap@0.5"](records) > 0.6


def test_patches_hold_the_boxes_of_their_part_of_the_scan(study, nodules):
    adapter, cases, config = nodule_adapter(study, nodules)
    adapter = planned(adapter, cases)
    samples = [adapter.load(case) for case in cases]
    still = config.augmentation.model_copy(update={"probability": 0.0, "flip_axes": [0, 1, 2]})
    met = 0
    for seed in range(4):
        images, targets = adapter.batch(samples, np.random.default_rng(seed), still, 1.0)
        for image, (boxes, labels), sample in zip(images, targets, samples, strict=True):
            assert len(boxes) == len(labels) == len(sample.truth)
            for box, label in zip(boxes.int().tolist(), labels, strict=True):
                inside = image[0, box[0] : box[3], box[1] : box[4], box[2] : box[5]].mean()
                assert (inside > image.mean() + 0.5) if label == 0 else (inside < image.mean() - 0.5)
                met += 1
    assert met > 10


def test_whole_scans_when_told_so_and_the_same_anchors_at_every_start(study, nodules):
    adapter, cases, _ = nodule_adapter(study, nodules, whole_scan=True)
    first, second = planned(adapter, cases), planned(adapter, cases)
    assert first.whole
    assert first.spec == second.spec
    assert first.load(cases[0]).image.shape == (1, 8, 16, 16)


def test_a_list_gives_labels_and_its_mistakes_are_named(study, slices):
    config = study("detection", slices)
    prepared = prepare(config)
    adapter = Detection(prepared.spec.model_copy(update={"classes": ["a", "b"]}))
    case = prepared.sides.pool[0]
    box = (0.0, 2.0, 3.0, 1.0, 12.0, 14.0)
    listed = [replace(case, target=Boxes.of(each)) for each in ([(box, 1), (box, 0)], [])]
    adapter = planned(adapter, listed)
    assert adapter.load(listed[0]).truth.labels.tolist() == [1, 0]
    assert len(adapter.load(listed[1]).truth) == 0
    for wrong, said in [((0.0, 2, 3, 1, 2, 14), "has no extent"), ((0.0, 2, 3, 1, 12, 400), "over the edge")]:
        with pytest.raises(UserError, match=said):
            adapter.load(replace(case, target=Boxes.of([(wrong, 0)])))
    with pytest.raises(UserError, match="none of the training cases has a box"):
        planned(adapter, listed[1:])


@pytest.mark.parametrize("whole", [True, False])
def test_batches_without_any_box_train(study, slices, whole):
    """MONAI issue 8126: scans without a finding."""
    config = study("detection", slices)
    prepared = prepare(config.model_copy(update={"task": DetectionTask(whole_scan=whole)}))
    adapter = planned(Detection(prepared.spec), prepared.sides.pool)
    empty = [s for s in map(adapter.load, prepared.sides.pool) if not len(s.truth)][:2]
    model = adapter.build(build(adapter.spec.backbone))
    history = fit(adapter, model, empty, config)
    assert np.isfinite([loss for _, loss in history.loss]).all()
    assert all(p.isfinite().all() for p in model.parameters())


def test_quarter_turns_where_both_axes_may_be_mirrored(study, slices):
    config = study(
        "detection",
        slices,
        augmentation={"flip_axes": [1, 2], "probability": 0.0},
        plan={"patch": [1, 48, 48], "batch": 2},
    )
    prepared = prepare(config)
    adapter = planned(Detection(prepared.spec), prepared.sides.pool)
    sample = next(s for s in map(adapter.load, prepared.sides.pool) if len(s.truth))
    shapes = set()
    for seed in range(12):
        images, ((boxes, _),) = adapter.batch([sample], np.random.default_rng(seed), config.augmentation, 0.5)
        (y0, x0, y1, x1) = boxes[0].round().int().tolist()
        lit = images[0, 0, 0, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
        assert lit.min() > images.mean() + 0.5
        blank = (images[0, 0, 0] - images[0, 0, 0, 0, 0]).abs() < 1e-4
        shapes.add((bool(blank[:, 0].all() or blank[:, -1].all()), bool(blank[0].all() or blank[-1].all())))
    assert len(shapes) == 2  # the padding lies at the sides or above and below


def test_a_hit_needs_the_class(study, slices):
    prepared = prepare(study("detection", slices))
    adapter = Detection(prepared.spec.model_copy(update={"classes": ["a", "b"]}))
    case = replace(prepared.sides.pool[0], target=Boxes.of([((0.0, 2.0, 3.0, 1.0, 12.0, 14.0), 1)]))
    sample = adapter.load(case)
    for label, hit in ((1, True), (0, False)):
        record = adapter.record(case, sample, Boxes(sample.truth.corners, np.array([label]), np.array([0.9])))
        assert hits_at(record, 0.5).tolist() == [hit]


def test_masks_with_classes_keep_them(study, nodules):
    config = study("detection", nodules)
    found = discover(config.data, DetectionTask(classes=["bright", "dark"]))
    assert found.classes == ["bright", "dark"]
    assert all(isinstance(case, Case) for case in found.cases)
