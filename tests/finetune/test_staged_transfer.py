"""A fine-tuned model, and a file of STU-Net's authors, start a fine-tuning as whole networks: at their own Dice."""

import json

import pytest
import torch

from scanfoundry.backbones.models.parts import joined
from scanfoundry.backbones.models.release import load_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import WIDTHS_AND_DEPTHS
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.run_study import prepare, run

STRIDES = [[2, 2, 2]] * 4 + [[1, 1, 2]]  # of the released STU-Nets
STANDING = {"compare_scratch": False, "schedule": {"steps": 1, "lr": 1e-9}}  # what is tested is what it starts from


@pytest.fixture(scope="module")
def narrow():
    """A STU-Net of the released layout, but for its width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WIDTHS_AND_DEPTHS, "S", (8, 1))
        yield


@pytest.fixture(scope="module")
def trained(volumes, tmp_path_factory, narrow):
    """A segmentation of the two blobs, trained until it can; from scratch."""
    from scanfoundry.finetune.config.study import FinetuneConfig

    config = FinetuneConfig.model_validate(
        {
            "run_dir": tmp_path_factory.mktemp("trained"),
            "task": {"name": "segmentation", "classes": ["one", "two"]},
            "data": {"images": volumes / "images", "labels": volumes / "labels", "modality": "mr"},
            "backbone": {"name": "stunet", "size": "S", "strides": STRIDES},
            "plan": {"patch": [32, 32, 32], "spacing": [2.0, 1.5, 1.5], "batch": 2},
            "shots": [8],
            "schedule": {"steps": 140, "warmup_steps": 10, "lr": 3e-3},
            "device": "cpu",
        }
    )
    return config, run(config)


def dice(result):
    found = json.loads(result.results.read_text())
    return found["table"][0]["metrics"]["dice"]["value"], found["setup"]["transferred"]


def restarted(config, tmp_path, **changes):
    task = {"name": "segmentation", "classes": ["one", "two"]}
    content = config.model_dump(mode="json", exclude_unset=True) | {"task": task, "run_dir": tmp_path / "run"}
    return type(config).model_validate(content | {"backbone": None} | STANDING | changes)


def test_a_run_starts_another_at_its_own_dice(trained, tmp_path):
    config, result = trained
    own, _ = dice(result)
    assert own > 0.9
    again, lines = dice(run(restarted(config, tmp_path, checkpoint=result.run_dir)))
    assert again == pytest.approx(own, abs=0.01)
    assert [line.split(":")[0] for line in lines] == ["encoder used", "decoder used", "head used"]
    alone, lines = dice(
        run(restarted(config, tmp_path, checkpoint=result.run_dir, transfer=["encoder"], run_dir=tmp_path / "alone"))
    )
    assert alone < 0.5
    assert [line.split(":")[0] for line in lines] == ["encoder used"]
    renamed = {"name": "segmentation", "classes": ["one", "other"]}
    half = restarted(config, tmp_path, checkpoint=result.run_dir, task=renamed, run_dir=tmp_path / "half")
    assert "head adapted: kept one; fresh other" in dice(run(half))[1]


def test_whom_both_trainings_have_seen_is_known(trained, tmp_path):
    config, result = trained
    first = load_release(result.run_dir)
    settled = prepare(config)
    used = {case.patient for case in settled.sides.pool}
    assert len(first.patients) == 8
    assert set(first.patients) <= used
    run(restarted(config, tmp_path, checkpoint=result.run_dir, shots=[9], seeds=[1]))
    both = load_release(tmp_path / "run")
    assert set(first.patients) < set(both.patients) <= used
    assert both.info.sources == (*first.info.sources, *first.info.sources)
    with pytest.raises(UserError, match="test patients were in the pre-training of this checkpoint"):
        prepare(restarted(config, tmp_path, checkpoint=result.run_dir, split={"test_fraction": 0.9}, shots=[1]))


def test_a_file_of_the_authors_starts_at_its_own_dice(trained, tmp_path):
    config, result = trained
    _, (model,) = load_model(result.run_dir)
    network = model.net
    torch.save({"state_dict": network.state_dict()}, tmp_path / "own.model")
    start = restarted(config, tmp_path, checkpoint=tmp_path / "own.model", checkpoint_classes=["one", "two"])
    again, lines = dice(run(start))
    assert again > 0.9
    assert lines[2] == "head used: its classes one, two"
    silent = restarted(config, tmp_path, checkpoint=tmp_path / "own.model", run_dir=tmp_path / "silent")
    _, lines = dice(run(silent))
    assert lines[2] == "head left: its classes have no names; give them in their order as checkpoint_classes"
    with pytest.raises(UserError, match="names 3 classes; the head of"):
        prepare(restarted(config, tmp_path, checkpoint=tmp_path / "own.model", checkpoint_classes=["a", "b", "c"]))


def test_what_is_written_is_the_same_network(trained):
    _, result = trained
    adapter, (model,) = load_model(result.run_dir)
    parts = load_release(result.run_dir).parts
    assert parts.keys() == {"encoder", "decoder", "head"}
    fresh = adapter.build(build(adapter.spec.backbone))
    fresh.load_state_dict(joined(fresh, fresh.state_dict(), parts))
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())


def test_an_exported_model_starts_another_training(trained, tmp_path):
    from scanfoundry.launch.zoo.exporting import ReleaseTerms, export

    config, result = trained
    own, _ = dice(result)
    export(result.run_dir, tmp_path / "ours", ReleaseTerms())
    assert load_release(tmp_path / "ours").patients == load_release(result.run_dir).patients
    again, lines = dice(run(restarted(config, tmp_path, checkpoint=tmp_path / "ours")))
    assert again == pytest.approx(own, abs=0.01)
    assert [line.split(":")[0] for line in lines] == ["encoder used", "decoder used", "head used"]
    export(result.run_dir, tmp_path / "bare", ReleaseTerms(with_patients=False))
    run(restarted(config, tmp_path, checkpoint=tmp_path / "bare", run_dir=tmp_path / "from_bare"))
    told = json.loads((tmp_path / "from_bare" / "model.json").read_text())["origin"]
    assert told["patients_withheld"] == 8
