"""What the tasks write down of a case, what they take from the training cases, and how members predict together."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.config.loss import LossConfig
from scanfoundry.finetune.inference.calibration import tempered
from scanfoundry.finetune.inference.segmented import Segmented
from scanfoundry.finetune.losses import class_loss, deep_supervision
from scanfoundry.finetune.metrics.dice import dice
from scanfoundry.finetune.metrics.surface import surface_scores
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.run_study import prepare

CPU = torch.device("cpu")


def settled(study, task, data, **spec):
    made = prepare(study(task, data, augmentation={"flip_axes": [2]}, inference={"mirror": True}))
    return adapter_for(made.spec.model_copy(update=spec)), made.sides


def member(adapter, seed, scale=1.0):
    torch.manual_seed(seed)
    model = adapter.build(build(adapter.spec.backbone)).eval()
    torch.nn.init.normal_(model.linear.weight, std=scale)
    return model


class TestSegmentation:
    def test_a_record_is_at_the_files_own_grid_and_spacing(self, study, volumes):
        adapter, sides = settled(study, "segmentation", volumes)
        case = sides.pool[0]
        sample = adapter.load(case)
        assert sample.spacing == pytest.approx((2.0, 1.5, 1.5))
        moved = np.roll(sample.truth, 1, axis=0)
        moved[moved == 2] = 0
        record = adapter.record(case, sample, Segmented(moved))
        json.dumps(record, allow_nan=False)
        surface = surface_scores(moved, sample.truth, 2, sample.spacing, 1.0)
        assert list(record["dice"].values()) == pytest.approx(dice(moved, sample.truth, 2))
        assert list(record["nsd"].values()) == pytest.approx([s.nsd for s in surface])
        assert list(record["hd95"].values()) == pytest.approx([s.hd95 for s in surface])
        assert 0 < record["hd95"]["label 1"] <= 2.0
        assert record["score"] == pytest.approx(np.mean(list(record["dice"].values())))

    def test_metrics_are_means_of_cases_and_leave_the_undefined_out(self, study, volumes):
        adapter, sides = settled(study, "segmentation", volumes)
        records = []
        for case, drop in zip(sides.pool[:3], (0, 1, 2), strict=True):
            sample = adapter.load(case)
            sample.truth = np.where(sample.truth == 2, 0, sample.truth)  # label 2 is in no truth
            prediction = np.roll(sample.truth, drop, axis=1)
            records.append(adapter.record(case, sample, Segmented(prediction)))
        metrics = adapter.metrics()
        assert list(metrics)[:4] == list(adapter.overview) == ["dice", "nsd", "hd95", "ece"]
        assert np.isnan(metrics["ece"](records))  # nobody kept probabilities
        for name in adapter.surfaces:
            expected = np.mean([r[name]["label 1"] for r in records])
            assert metrics[name](records) == pytest.approx(expected)
            assert metrics[f"{name} label 1"](records) == pytest.approx(expected)
            assert np.isnan(metrics[f"{name} label 2"](records))
        assert metrics["dice"](records[:1]) == 1.0

    def test_weights_of_classes_come_from_the_voxels_and_reach_the_loss(self, study, volumes):
        loss = LossConfig(class_weights="inverse_sqrt", term="focal", dice=0.5)
        adapter, sides = settled(study, "segmentation", volumes, loss=loss)
        samples = [adapter.load(case) for case in sides.pool[:2]]
        weighted = adapter.planned(samples)
        counts = sum(np.bincount(s.target.ravel(), minlength=3) for s in samples)
        raw = 1 / np.sqrt(counts)
        assert weighted.spec.class_weights == pytest.approx(raw / raw.mean())
        torch.manual_seed(0)
        model = weighted.build(build(weighted.spec.backbone))
        images, labels = torch.randn(1, 1, 16, 16, 16), torch.randint(0, 3, (1, 16, 16, 16))
        expected = deep_supervision(model(images), labels, loss, torch.tensor(weighted.spec.class_weights))
        assert weighted.loss(model, images, labels).item() == pytest.approx(expected.item())
        assert weighted.loss(model, images, labels).item() != pytest.approx(adapter.loss(model, images, labels).item())


class TestClassification:
    def test_a_prediction_is_the_tempered_mean_over_members_and_mirrors(self, study, slices):
        adapter, sides = settled(study, "classification", slices)
        sample = adapter.load(sides.pool[0])
        members = [member(adapter, seed, scale=0.05) for seed in (0, 1)]
        image = adapter.passes(members[:1], sample, CPU)
        assert image.shape == (2, 2)  # two mirrorings, two classes
        each = [adapter.predict([m], sample, CPU) for m in members]
        assert each[0] == pytest.approx(image.softmax(1).mean(0).numpy())
        together = adapter.predict(members, sample, CPU)
        assert together == pytest.approx(np.mean(each, axis=0))
        assert np.abs(together - each[0]).max() > 1e-4
        hot = adapter_for(adapter.spec.model_copy(update={"temperature": 3.0}))
        assert hot.predict(members, sample, CPU) == pytest.approx(tempered(together, 3.0))

    def test_metrics_of_two_classes(self, study, slices):
        adapter, _ = settled(study, "classification", slices)
        rng = np.random.default_rng(0)
        p = rng.dirichlet([1, 1], 20)
        labels = rng.integers(0, 2, 20)
        records = [{"label": int(k), "probabilities": q.tolist()} for k, q in zip(labels, p, strict=True)]
        metrics = {name: statistic(records) for name, statistic in adapter.metrics().items()}
        assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, p[:, 1]))
        assert metrics["sensitivity"] == pytest.approx((p[labels == 1].argmax(1) == 1).mean())
        assert metrics["specificity"] == pytest.approx((p[labels == 0].argmax(1) == 0).mean())
        assert set(adapter.overview) < set(metrics)

    def test_metrics_of_three_classes(self, study, slices):
        adapter, _ = settled(study, "classification", slices, classes=["a", "b", "c"])
        assert {"auroc a", "auroc b", "auroc c"} < set(adapter.metrics())
        assert "sensitivity" not in adapter.metrics()

    def test_options_of_the_loss_reach_it(self, study, slices):
        loss = LossConfig(term="dual_focal", gamma=1.5, class_weights="effective")
        adapter, sides = settled(study, "classification", slices, loss=loss)
        samples = [adapter.load(case) for case in sides.pool[:5]]
        weighted = adapter.planned(samples)
        counts = np.bincount([s.target for s in samples], minlength=2)
        raw = (1 - 0.999) / (1 - 0.999**counts)
        assert weighted.spec.class_weights == pytest.approx(raw / raw.mean())
        model = member(weighted, 3)
        images, labels = torch.randn(3, 1, *adapter.spec.plan.patch), torch.tensor([0, 1, 1])
        expected = class_loss(model(images), labels, loss, torch.tensor(weighted.spec.class_weights))
        assert weighted.loss(model, images, labels).item() == pytest.approx(expected.item())


class TestDetection:
    def test_a_record_counts_hits_and_metrics_read_it(self, study, slices):
        adapter, sides = settled(study, "detection", slices)
        samples = [adapter.load(case) for case in sides.pool]
        records = []
        for case, sample in zip(sides.pool, samples, strict=True):
            # Every finding is found, and one false box, surer than all, lies in every other scan without one.
            boxes, scores = sample.truth.corners, np.full(len(sample.truth), 0.5)
            if not len(boxes) and len(records) % 2:
                boxes, scores = np.array([[0, 0, 0, 1, 3, 3.0]]), np.array([0.9])
            records.append(adapter.record(case, sample, Boxes(boxes, np.zeros(len(boxes), np.int64), scores)))
            json.dumps(records[-1], allow_nan=False)
        metrics = {name: statistic(records) for name, statistic in adapter.metrics().items()}
        true, false = sum(r["truths"][0] for r in records), sum(not h for r in records for h in r["hits"])
        assert true > 0
        assert false > 0
        precision = true / (true + false)
        for name in ("ap@0.1", "ap@0.5", "map@0.1:0.5"):
            assert metrics[name] == pytest.approx(precision)
        rate = false / len(records)
        for name, allowed in (("1/8", 0.125), ("1", 1.0), ("8", 8.0)):
            assert metrics[f"froc@0.1 {name}"] == float(rate <= allowed)
        assert {round(r["score"], 9) for r in records if r["truths"] == [0]} == {1.0, 0.1}
        assert set(adapter.overview) < set(metrics)


def test_an_option_of_the_loss_that_the_task_does_not_read_is_an_error(study, slices):
    with pytest.raises(UserError, match=r"loss\.term has no meaning for detection"):
        settled(study, "detection", slices, loss=LossConfig(term="focal"))
