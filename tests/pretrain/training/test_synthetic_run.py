"""A run on scans that are drawn: stopped and continued with the same bytes; what its release says of its origin."""

import json

import pytest
from safetensors.torch import load_file

from scanfoundry.backbones.models.release import check_fits, load_release
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.training.loop import run
from scanfoundry.pretrain.training.step_log import StepLog


def config(folder, **changes):
    data = {
        "sources": [{"name": "shapes", "synthetic": {"scans": 8, "shapes": [3, 6]}}], "positives": "study",
        "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 2, "batch_3d": 2, "workers": 0,
    }  # fmt: skip
    given = {
        "run_dir": str(folder), "seed": 3, "steps": 5, "checkpoint_every": 2, "threads": 1, "monitor_crops": 4,
        "backbone": {"name": "resenc", "features": [4, 8, 8], "blocks": [1, 1, 1], "strides": [[2, 2, 2]] * 2},
        "objective": {"name": "dense_contrast", "voxels": 32, "projector_hidden": 16, "projector_dim": 8},
        "data": data | changes.pop("data", {}), "optimiser": {"lr": 1e-3, "warmup_steps": 1}, "device": "cpu",
    }  # fmt: skip
    return PretrainConfig.model_validate(given | changes)


class StopAt:
    """A request to stop that comes at a question: there is one at first, one after each step and each checkpoint."""

    signal = None

    def __init__(self, question):
        self.left = question

    def agreed(self, world):
        self.left -= 1
        return self.left <= 0


def test_stopped_and_continued_it_ends_with_the_same_bytes(tmp_path):
    assert run(config(tmp_path / "straight")).complete
    assert run(config(tmp_path / "stopped"), stop=StopAt(5)).step == 3
    assert run(config(tmp_path / "stopped")).complete
    one, other = (tmp_path / name for name in ("straight", "stopped"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    lines = [[json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (one, other)]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert {line["kind"] for line in lines[0]} == {"2d", "3d"}
    assert all(line["contrast/synthetic"] == pytest.approx(line["loss"]) for line in lines[0])
    assert list((one / "pictures").glob("*.png"))

    release = load_release(one)
    assert release.parts.keys() == {"encoder", "decoder"}
    check_fits(release.parts, release.info.backbone)
    assert release.info.head is None
    assert (release.patients, release.info.patient_free, release.info.sites) == ([], True, frozenset())
    (source,) = release.info.sources
    assert (source.name, source.synthetic, len(source.manifest_sha256)) == ("shapes", True, 64)
    with pytest.raises(UserError, match=r"data\.sources\.0\.synthetic\."):
        run(config(other, data={"sources": [{"name": "shapes", "synthetic": {"scans": 8, "body": 0.1}}]}))


def test_weights_that_began_elsewhere_do_not_count_as_free_of_patients(tmp_path, tiny_shards):
    mixed = [{"name": "shapes", "synthetic": {"scans": 8}}, {"name": "mr", "path": str(tiny_shards["mr"])}]
    mae = {"name": "mae", "block_2d": [4, 4], "block_3d": [4, 4, 4]}
    data = {"sources": mixed, "positives": "views", "crop_2d": None}
    run(config(tmp_path / "mixed", objective=mae, data=data, steps=2))
    info = load_release(tmp_path / "mixed").info
    assert not info.patient_free
    assert info.patients == 12
    assert len(info.sites) == 1
    assert {source.name: source.synthetic for source in info.sources} == {"shapes": True, "mr": False}

    run(config(tmp_path / "second", init=str(tmp_path / "mixed"), steps=2, data={"crop_2d": None}))
    second = load_release(tmp_path / "second")
    assert not second.info.patient_free
    assert len(second.patients) == 12
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("mixed", "second"))
    assert {key for key in before if not key.startswith("head.")} == after.keys()


def test_a_step_that_is_read_when_the_next_is_launched_is_logged_the_same(tmp_path, monkeypatch):
    """As on a GPU: looks at the weights, checkpoints and the end wait for what is open."""
    given = {"steps": 7, "checkpoint_every": 4, "picture_every": 3, "monitor_every": 5}
    assert run(config(tmp_path / "at_once", **given)).complete
    ahead: list[int] = []
    began = StepLog.__init__

    def behind(log, config, world, engine, *words):
        began(log, config, world, engine, *words)
        log._behind = 1
        launch = engine.launch
        engine.launch = lambda *given: ahead.append(len(log._open)) or launch(*given)

    monkeypatch.setattr(StepLog, "__init__", behind)
    assert run(config(tmp_path / "later", **given)).complete
    assert ahead == [0, 1, 1, 0, 0, 0, 0]  # a picture (3, 6), a checkpoint (4) and monitors (5) leave nothing open
    one, other = (tmp_path / name for name in ("at_once", "later"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    timing = ("samples_per_second", "data_wait", "memory_gib")
    lines = [
        [{k: v for k, v in json.loads(line).items() if k not in timing} for line in each]
        for each in ((folder / "metrics.jsonl").read_text().splitlines() for folder in (one, other))
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 7
