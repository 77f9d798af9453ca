"""The trials of a study, each in a process of its own, give the study of one process."""

import fcntl
import json

import pytest
from studies import numbers

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.run_folder import LOCK
from scanfoundry.finetune.run_alone import run_alone
from scanfoundry.finetune.run_study import run
from scanfoundry.finetune.study.prepare import check_lists, trial_names
from scanfoundry.finetune.study.run_folder import claim


@pytest.fixture
def two_trials(study, slices):
    """A classification of two seeds, from scratch, in a run folder of its own name."""

    def make(tmp_path, name):
        config = study("classification", slices, modality="us", seeds=[0, 1], run_dir=tmp_path / name)
        config.run_dir.mkdir()
        claim(config)
        return config

    return make


def test_trials_one_by_one_give_the_study_of_one_process(two_trials, tmp_path):
    whole, parts = two_trials(tmp_path, "whole"), two_trials(tmp_path, "parts")
    run(whole)
    first, second = (name.folder for name in trial_names(parts))
    assert run_alone(parts, second) is None
    assert not (parts.run_dir / "results.json").exists()
    report = run_alone(parts, first)
    assert report == parts.run_dir / "report.html"
    assert numbers(parts.run_dir) == numbers(whole.run_dir)
    assert (parts.run_dir / "model.safetensors").read_bytes() == (whole.run_dir / "model.safetensors").read_bytes()
    assert not (parts.run_dir / "samples").exists()
    changed = json.loads((parts.run_dir / "results.json").read_text())
    assert run_alone(parts, second) == report  # a task that is started again finds everything there
    assert json.loads((parts.run_dir / "results.json").read_text()) == changed


def test_trials_stay_away_from_a_study_that_runs_and_that_from_them(two_trials, tmp_path, monkeypatch):
    config = two_trials(tmp_path, "run")
    first, _ = (name.folder for name in trial_names(config))
    monkeypatch.setattr("scanfoundry.finetune.study.run_folder.PATIENCE", 0.1)
    with open(config.run_dir / LOCK, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use"):
            run_alone(config, first)
        fcntl.flock(other, fcntl.LOCK_SH)  # another trial of the array
        with pytest.raises(UserError, match="is in use"):
            run(config)
    with pytest.raises(UserError, match="has no trial nobody"):
        run_alone(config, "nobody")


def test_lists_are_checked_before_anything_is_queued(study, slices, tmp_path):
    config = study("classification", slices, modality="us")
    check_lists(config)
    elsewhere = config.data.model_copy(update={"images": tmp_path / "nowhere"})
    with pytest.raises(UserError, match="nowhere"):
        check_lists(config.model_copy(update={"data": elsewhere}))
