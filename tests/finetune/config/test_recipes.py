"""Every recipe through a whole study on tiny data: what learns, what is kept, what predicts."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.run_study import prepare, run

CONFIG = ResEncConfig(features=(8, 16, 32), blocks=(1, 1, 1), strides=((2, 2, 2),) * 2)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(9)
    save_release(tmp_path / "pre", {"encoder": build(CONFIG).state_dict()}, ReleaseInfo(backbone=CONFIG), [])
    return tmp_path / "pre"


def given(checkpoint, *recipes, **others):
    return {"backbone": None, "checkpoint": checkpoint, "recipes": list(recipes), "compare_scratch": False, **others}


def rows(result):
    return json.loads(result.results.read_text())


def test_probes_share_features_and_predict_what_the_study_tested(study, slices, checkpoint, tmp_path):
    recipes = ("knn", "linear_probe", "attentive_probe")
    config = study(
        "classification", slices, shots=[4, 8], keep_weights="all", **given(checkpoint, *recipes),
        probe={"views": 2, "neighbours": 3, "steps": 20},
    )  # fmt: skip
    found = rows(run(config))
    assert [row["arm"] for row in found["table"]] == [*recipes, *recipes]
    stores = list((config.run_dir / "features").iterdir())
    assert len(stores) == 1  # of one encoder at one plan
    names = {path.stem.partition("-")[0] for path in stores[0].iterdir()}
    of_test = {record["case"] for record in found["cells"][0]["records"]}
    assert of_test <= names  # the test scans too: once for all cells
    for recipe in recipes:
        cell = next(c for c in found["cells"] if c["arm"] == recipe and c["shots"] == 8)
        adapter, members = load_model(config.run_dir / "cells" / f"{recipe}-8-shots-seed0")
        assert adapter.spec.head == recipe
        case = prepare(config).sides.test[0]
        again = adapter.predict(members, adapter.load(case), torch.device("cpu"))
        record = next(r for r in cell["records"] if r["case"] == case.key)
        assert record["probabilities"] == pytest.approx(list(np.ravel(again)), abs=2e-3)
    (written,) = predict(config.run_dir, [slices / "images"], tmp_path / "out")
    assert written.read_text().count("\n") > 10


def test_a_linear_probe_is_the_logistic_regression_that_was_fitted():
    from scanfoundry.backbones.probes.classification import fit_logistic, logistic

    rng = np.random.default_rng(0)
    for classes in (2, 3):
        features, labels = rng.normal(size=(60, 5)) * [1, 10, 0.1, 1, 1], np.arange(60) % classes
        features[:, 0] += labels
        patients = [str(i // 2) for i in range(60)]
        weights, bias = fit_logistic(features, labels, patients)
        logits = features @ weights.T + bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert shares == pytest.approx(logistic(features, labels, patients, features), abs=1e-9)


def test_the_report_of_a_fitted_probe_has_no_empty_picture_of_losses(study, slices, checkpoint, recwarn):
    result = run(study("classification", slices, shots=[4], **given(checkpoint, "linear_probe")))
    page = (result.run_dir / "report.html").read_text()
    assert "Every test case." in page
    assert "Training loss" not in page
    assert not [str(warning.message) for warning in recwarn if "legend" in str(warning.message)]


def test_lora_changes_only_what_it_may_and_leaves_a_plain_model(study, volumes, checkpoint):
    config = study("segmentation", volumes, **given(checkpoint, "lora"), lora={"rank": 2})
    result = run(config)
    _, members = load_model(result.run_dir)
    assert not [name for name in members[0].state_dict() if "lora" in name]
    before, after = build(CONFIG).state_dict(), members[0].state_dict()
    torch.manual_seed(9)
    before = build(CONFIG).state_dict()
    changed = {
        n: (after[f"net.encoder.{n}"] - w).flatten(1) for n, w in before.items() if n.endswith("conv2.conv.weight")
    }
    moved = [delta for delta in changed.values() if delta.abs().max() > 0]
    assert moved
    assert all(torch.linalg.matrix_rank(delta.double(), rtol=1e-4) <= 2 for delta in moved)
    assert all(torch.equal(after[f"net.encoder.{n}"], w) for n, w in before.items() if "norm" in n)


def test_the_warm_recipes_beside_scratch_are_in_the_report(study, slices, checkpoint):
    options = given(checkpoint, "warmup", "sawtooth") | {"compare_scratch": True}
    config = study("classification", slices, **options, augmentation={"mixup": 0.8, "cutmix": 1.0},
                   schedule={"steps": 4, "warmup_steps": 1, "layer_decay": 0.9})  # fmt: skip
    result = run(config)
    assert [row["arm"] for row in rows(result)["table"]] == ["warmup", "sawtooth", "scratch"]
    assert rows(result)["setup"]["peak_lr"] == pytest.approx({"warmup": 1e-4, "sawtooth": 1e-4, "scratch": 1e-3})
    page = (result.run_dir / "report.html").read_text()
    for words in ("decoder first", "warm-up to a lower rate", "from scratch 0.001", "layer decay 0.9"):
        assert words in page


def test_folds_are_held_back_predict_together_and_are_deterministic(study, volumes, tmp_path):
    config = study("segmentation", volumes, shots=[4], validation={"folds": 2, "checks": 1})
    results = [run(config.model_copy(update={"run_dir": tmp_path / name})) for name in ("a", "b")]
    first, second = (rows(result)["cells"][0] for result in results)
    assert len(first["histories"]) == 2
    assert sorted(r["case"] for r in first["validation"]) == sorted(first["train_cases"])
    assert [r["score"] for r in first["records"]] == [r["score"] for r in second["records"]]
    weights = [(result.run_dir / "model.safetensors").read_bytes() for result in results]
    assert weights[0] == weights[1]
    adapter, members = load_model(results[0].run_dir)
    assert adapter.spec.members == len(members) == 2
    case = prepare(config).sides.test[0]
    sample = adapter.load(case)
    together = adapter.record(case, sample, adapter.predict(members, sample, torch.device("cpu")))
    written = next(r for r in first["records"] if r["case"] == case.key)
    assert together["score"] == written["score"]
    assert np.array(together["reliability"]) == pytest.approx(np.array(written["reliability"]))
    assert adapter.spec.temperature == first["temperature"] != 1.0  # of the held-back voxels
    assert 0 < rows(results[0])["table"][0]["metrics"]["ece"]["value"] < 1


def test_a_held_back_share_decides_temperature_and_best_weights(study, slices, fixed_key):
    # The same cases each time: all right tell no temperature.
    config = study(
        "classification", slices, shots=[8], schedule={"steps": 6, "warmup_steps": 1},
        validation={"fraction": 0.25, "checks": 3},
    )  # fmt: skip
    key = config.data.model_copy(update={"key_file": fixed_key("of the tests 1")})
    config = config.model_copy(update={"data": key})
    cell = rows(run(config))["cells"][0]
    held = {record["case"] for record in cell["validation"]}
    assert held < set(cell["train_cases"])
    assert len(cell["histories"][0]["validation"]) == 3
    assert cell["histories"][0]["best_step"] in (2, 4, 6)
    assert cell["temperature"] != 1.0


def test_a_budget_bounds_the_study(study, slices):
    config = study("classification", slices, budget="8s", schedule={"warmup_steps": 1})
    found = rows(run(config))
    assert found["cells"][0]["histories"][0]["seconds"] < 8
    assert found["cells"][0]["histories"][0]["steps"] > 3
    assert found["setup"]["budget_seconds"] == 8


def test_a_budget_of_boxes_does_not_depend_on_whether_the_first_tested_scan_has_one(study, slices):
    config = study("detection", slices, budget="6s", shots=[6], schedule={"warmup_steps": 1})
    assert rows(run(config))["cells"][0]["histories"][0]["steps"] >= 1


def test_what_is_typed_beats_the_schedule_of_a_file():
    def dropped(**typed):
        return {
            key for key in FinetuneConfig.gives_way(typed, {"task": {"name": "classification"}}) if "schedule" in key
        }

    assert dropped(recipes=["full"]) == {
        "schedule.frozen_steps", "schedule.warmup_share", "schedule.decoder_share", "schedule.decoder_lr_scale"
    }  # fmt: skip
    assert dropped(recipes="[sawtooth, staged]") == set()
    assert dropped(recipes=["warmup"], compare_scratch=False) == {
        "schedule.frozen_steps", "schedule.decoder_share", "schedule.decoder_lr_scale", "schedule.warmup_steps"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": []}, "needs one at least"),
        ({"recipes": ["full", "full"]}, "each once"),
        ({"recipes": ["knn"], "task": {"name": "segmentation"}}, "for classification"),
        ({"recipes": ["lora"], "checkpoint": None, "backbone": {"name": "vit"}}, "for a checkpoint"),
        ({"schedule": {"frozen_steps": 5}}, "recipe 'staged'"),
        ({"schedule": {"decoder_share": 0.1}}, "recipe sawtooth"),
        ({"schedule": {"warmup_share": 0.6, "decoder_share": 0.5}}, "lower them"),
        ({"recipes": ["warmup"], "schedule": {"warmup_steps": 7}}, "schedule.warmup_share"),
        ({"checkpoint": None, "backbone": {"name": "vit"}, "schedule": {"layer_decay": 0.7}}, "a rate of its own"),
        ({"task": {"name": "regression"}, "augmentation": {"mixup": 0.8}}, "no class of each scan"),
        ({"recipes": ["knn"], "augmentation": {"cutmix": 1.0}}, "one scan at a time"),
        ({"augmentation": {"cutmix": 1.0}, "plan": {"batch": 1}}, "raise plan.batch"),
        ({"budget": "1min", "schedule": {"steps": 5}}, "leave out schedule.steps"),
        ({"budget": "soon"}, "is no time"),
        ({"validation": {"folds": 2, "fraction": 0.2}}, "not both"),
    ],
)
def test_what_makes_no_sense_is_refused(study, slices, checkpoint, changes, message):
    config = study("classification", slices, **given(checkpoint, "full")).model_dump()
    config["schedule"] = {}
    with pytest.raises(ValidationError, match=message):
        type(study("classification", slices)).model_validate({**config, **changes})
