"""TensorBoard's event files hold what metrics.jsonl does, also after a kill and a resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scanfoundry.configs import extras
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.config.wandb import WandbConfig
from scanfoundry.pretrain.logging.tracker import Tracker
from scanfoundry.pretrain.training.loop import run


def tracker(run_dir: Path, resumed: int = 0) -> Tracker:
    run_dir.mkdir(exist_ok=True)
    return Tracker(run_dir, WandbConfig(), {"path": "/secret/place/data", "lr": 0.1}, resumed, 100, True, True)


def log(to: Tracker, step: int, picture: Path | None = None) -> None:
    line = {
        "step": step,
        "loss": 1 / step,
        "kind": "2d",
        "applied": True,
        "samples_per_second": 2.0,
        "mfu": float("nan"),
    }
    to.log(line, True, picture)


def events(run_dir: Path) -> EventAccumulator:
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return found


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events(run_dir).Scalars("loss")]


def test_numbers_texts_and_pictures_are_those_of_the_metrics_file(tmp_path):
    run_dir = tmp_path / "run"
    to = tracker(run_dir)
    (run_dir / "pictures").mkdir()
    Image.new("L", (20, 10)).save(run_dir / "pictures" / "step.png")
    log(to, 1)
    log(to, 2, run_dir / "pictures" / "step.png")
    to.close()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert losses(run_dir) == [(line["step"], line["loss"]) for line in lines]
    found = events(run_dir)
    assert set(found.Tags()["scalars"]) == {"loss", "applied", "samples_per_second"}  # what is not a number is left out
    assert [event.step for event in found.Images("reconstruction")] == [2]
    assert set(found.Tags()["tensors"]) == {"config/text_summary", "kind/text_summary"}
    (written,) = (run_dir / "tensorboard").iterdir()
    assert b"/secret/place" not in written.read_bytes()


def test_a_resumed_run_has_every_step_once(tmp_path):
    run_dir = tmp_path / "run"
    to = tracker(run_dir)
    for step in (1, 2, 3):
        log(to, step)
    to.close()
    to = tracker(run_dir, resumed=2)  # the third step came after the checkpoint
    log(to, 3)
    log(to, 4)
    to.close()
    assert [step for step, _ in losses(run_dir)] == [1, 2, 3, 4]
    assert len(list((run_dir / "tensorboard").iterdir())) == 1


def test_a_folder_that_cannot_be_written_costs_no_step(tmp_path, caplog):
    caplog.set_level("INFO")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "tensorboard").write_text("a file")
    to = tracker(run_dir)
    log(to, 1)
    to.close()
    assert "TensorBoard's files cannot be written" in caplog.text
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 1


def test_without_the_package_a_run_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    config = PretrainConfig.model_validate({
        "run_dir": tmp_path / "run", "steps": 100, "backbone": {"name": "vit", "size": "Ti"},
        "objective": {"name": "mae"}, "tensorboard": True,
        "data": {"sources": [{"name": "a", "synthetic": {}}], "crop_2d": [32, 32]},
    })  # fmt: skip
    with pytest.raises(UserError, match=r"pip install .scanfoundry\[tensorboard\]"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_ask_imports_nothing_of_it():
    code = "import sys, scanfoundry.pretrain.training.loop; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "False"
