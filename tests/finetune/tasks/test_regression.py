"""The regression task, from the list of values to the prediction."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.study import AugmentationConfig
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.model_file import adapter_for, load_model
from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.run_study import prepare, run

CPU = torch.device("cpu")


@pytest.fixture
def values(tmp_path):
    """30 grey PNGs of 32 x 32 whose value is 40 x the size of a bright square + 1000."""
    root = tmp_path / "values"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(2)
    rows = []
    for i in range(30):
        size = int(rng.integers(4, 24))
        image = rng.normal(60, 10, (32, 32))
        image[4 : 4 + size, 4 : 4 + size] += 120
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"v{i:02d}.png")
        rows.append({"id": f"v{i:02d}", "age": 1000 + 40 * size})
    with (root / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "age"])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture
def made(study, values):
    def configured(**others):
        config = study("classification", values, **others)
        return config.model_copy(update={"task": RegressionTask(label_column="age")})

    return configured


def test_a_study_writes_numbers_in_the_targets_unit_and_predict_does_too(made, values, tmp_path):
    result = run(made(shots=[12], schedule={"steps": 25, "warmup_steps": 5, "lr": 2e-3}, plan={"batch": 6}))
    found = json.loads(result.results.read_text())
    (row,) = found["table"]
    records = found["cells"][0]["records"]
    truth = np.array([r["truth"] for r in records])
    assert found["headline"] == "mae"
    assert row["metrics"]["mae"]["value"] == pytest.approx(
        np.mean([abs(r["prediction"] - r["truth"]) for r in records])
    )
    # Better than saying the median of the test cases, which no training case told.
    assert row["metrics"]["mae"]["value"] < np.abs(truth - np.median(truth)).mean()
    assert row["metrics"]["pearson"]["value"] > 0
    assert min(records, key=lambda r: r["score"]) == max(records, key=lambda r: abs(r["prediction"] - r["truth"]))
    assert "MAE" in result.report.read_text()

    (written,) = predict(result.model, [values / "images"], tmp_path / "out")
    with written.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0].keys() == {"file", "age"}
    assert len(rows) == 30
    assert all(800 < float(r["age"]) < 2200 for r in rows)
    adapter, _ = load_model(result.model)
    assert adapter.spec.standard.std > 100


def test_before_any_step_it_says_the_mean_of_the_training_cases(made):
    settled = prepare(made())
    adapter = adapter_for(settled.spec)
    samples = [adapter.load(case) for case in settled.sides.pool[:6]]
    adapter = adapter.planned(samples)
    values = np.array([s.target for s in samples])
    assert adapter.spec.standard.mean == pytest.approx(values.mean())
    assert adapter.spec.standard.std == pytest.approx(values.std())
    model = adapter.build(build(settled.spec.backbone)).eval()
    assert adapter.predict([model], samples[0], CPU) == pytest.approx(values.mean())
    images, targets = adapter.batch(samples, np.random.default_rng(0), AugmentationConfig(), 0.0)
    assert targets.numpy() * values.std() + values.mean() == pytest.approx(values, rel=1e-5)
    expected = torch.nn.functional.smooth_l1_loss(torch.zeros(6), targets)
    assert adapter.loss(model, images, targets).item() == pytest.approx(expected.item())


def test_members_are_averaged(made):
    settled = prepare(made())
    adapter = adapter_for(settled.spec)
    samples = [adapter.load(case) for case in settled.sides.pool[:4]]
    adapter = adapter.planned(samples)
    members = [adapter.build(build(settled.spec.backbone)).eval() for _ in range(2)]
    for member, bias in zip(members, (-1.0, 3.0), strict=True):
        torch.nn.init.constant_(member.linear.bias, bias)
    alone = [adapter.predict([member], samples[0], CPU) for member in members]
    assert alone[1] - alone[0] == pytest.approx(4 * adapter.spec.standard.std)
    assert adapter.predict(members, samples[0], CPU) == pytest.approx(np.mean(alone))


def test_values_that_are_all_the_same_are_an_error(made):
    settled = prepare(made())
    adapter = adapter_for(settled.spec)
    sample = adapter.load(settled.sides.pool[0])
    with pytest.raises(UserError, match="training cases have the value"):
        adapter.planned([sample, sample])


@pytest.mark.parametrize(
    ("entry", "message"), [("old", "'old' of .* in column 'age' is no number"), ("inf", "no number")]
)
def test_a_value_that_is_no_number_names_the_column(made, values, entry, message):
    text = (values / "labels.csv").read_text().splitlines()
    text[3] = text[3].split(",")[0] + "," + entry
    (values / "labels.csv").write_text("\n".join(text) + "\n")
    with pytest.raises(UserError, match=message):
        prepare(made())


def test_a_blank_value_leaves_the_case_out(made, values):
    text = (values / "labels.csv").read_text().splitlines()
    text[3] = text[3].split(",")[0] + ","
    (values / "labels.csv").write_text("\n".join(text) + "\n")
    found = prepare(made()).found
    assert len(found.cases) == 29
    assert found.left_out == {"images without a label": 1}
