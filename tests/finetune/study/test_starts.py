"""A study that compares several checkpoints: their arms, names, differences and refusals."""

import json

import pytest
import torch

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.drawing.canvas import colours_of, name_of
from scanfoundry.finetune.run_study import prepare, run
from scanfoundry.finetune.study.split import shots

TINY = ResEncConfig(features=(8, 12, 16), blocks=(1, 1, 1), strides=((2, 2, 2), (2, 2, 2)))


def released(folder, seed, backbone=TINY, **facts):
    torch.manual_seed(seed)
    save_release(folder, {"encoder": build(backbone).state_dict()}, ReleaseInfo(backbone=backbone, **facts), [])
    return folder


@pytest.fixture
def starts(tmp_path):
    return {"mae": released(tmp_path / "a", 1), "spark": released(tmp_path / "b", 2)}


def test_any_two_arms_are_compared(study, slices, starts):
    config = study("classification", slices, modality="us", backbone=None, checkpoint=starts, shots=[0.25, 4])
    assert [arm.name for arm in config.arms] == ["mae", "spark", "scratch"]
    result = run(config)
    found = json.loads(result.results.read_text())
    assert {(row["arm"], row["shots"]) for row in found["table"]} == {
        (arm, k) for arm in ("mae", "spark", "scratch") for k in (0.25, 4)
    }
    pairs = [(pair["arm"], pair["against"], pair["shots"]) for pair in found["paired"]]
    expected = [("mae", "scratch"), ("spark", "scratch"), ("spark", "mae")]
    assert pairs == [(*pair, k) for k in (0.25, 4) for pair in expected]
    trials = {(cell["arm"], cell["shots"]): cell for cell in found["cells"]}
    assert trials["mae", 4]["histories"][0]["loss"] != trials["spark", 4]["histories"][0]["loss"]
    assert trials["mae", 4]["train_cases"] == trials["spark", 4]["train_cases"]
    lines = found["setup"]["transferred"]
    assert [line.split(":")[0] for line in lines] == ["mae", "spark"]
    report = result.report.read_text()
    assert "pre-trained by spark minus pre-trained by mae" in report
    assert "25%" in report


def test_each_checkpoint_by_each_recipe(study, slices, starts):
    config = study("classification", slices, backbone=None, checkpoint=starts, recipes=["full", "warmup"])
    assert [arm.name for arm in config.arms] == ["mae_full", "mae_warmup", "spark_full", "spark_warmup", "scratch"]
    assert [arm.start for arm in config.arms] == ["mae", "mae", "spark", "spark", ""]
    assert name_of("mae_warmup") == "pre-trained by mae, warm-up to a lower rate"
    colours = colours_of(arm.name for arm in config.arms)
    assert len(set(colours.values())) == 5


def test_what_cannot_be_compared_is_refused(study, slices, starts, tmp_path):
    def given(**checkpoints):
        return study("classification", slices, modality="us", backbone=None, checkpoint=checkpoints)

    other = released(tmp_path / "c", 3, TINY.model_copy(update={"features": (8, 12, 24)}))
    with pytest.raises(UserError, match="checkpoint 'large' has another backbone than 'mae'"):
        prepare(given(mae=starts["mae"], large=other))
    bright = released(tmp_path / "d", 3, intensity={"percentiles": [0.0, 100.0]})
    with pytest.raises(UserError, match="'bright' has scans of other intensities than 'mae'"):
        prepare(given(mae=starts["mae"], bright=bright))
    with pytest.raises(ValueError, match="'full' names a way of training: give the checkpoint another name"):
        given(full=starts["mae"])
    with pytest.raises(ValueError, match="names no model"):
        given()


@pytest.mark.parametrize(("k", "per_class"), [(0.1, 1), (0.5, 5), (0.26, 3), (3, 3)])
def test_shares_are_of_the_patients_of_each_class_and_nested(k, per_class):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Case:
        key: str
        patient: str
        target: int

    pool = [Case(f"{number:02d}", f"{number:02d}", number % 2) for number in range(20)]
    chosen = shots(pool, k, 0)
    assert [sum(case.target == target for case in chosen) for target in (0, 1)] == [per_class] * 2
    assert {case.key for case in chosen} <= {case.key for case in shots(pool, 0.9, 0)}
