"""What is refused before a job is queued."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.cluster.options import ClusterConfig
from scanfoundry.launch.cluster.preflight import bytes_of_checkpoints, check_runs
from scanfoundry.pretrain.config.run import PretrainConfig

Usage = namedtuple("Usage", ["total", "used", "free"])


def configured(run_dir: Path, **changes) -> PretrainConfig:
    """A small run on scans that are drawn: there is nothing to read."""
    data = {"sources": [{"name": "shapes", "synthetic": {"scans": 8}}], "crop_3d": [16, 16, 16], "batch_3d": 4}
    return PretrainConfig.model_validate({
        "run_dir": run_dir, "steps": 100, "backbone": {"name": "vit", "size": "Ti", "patch_3d": [8, 8, 8]},
        "objective": {"name": "mae"}, "data": data,
    } | changes)  # fmt: skip


def test_a_batch_that_does_not_divide_is_refused_with_what_would(tmp_path):
    run = configured(tmp_path / "run", engine={"accumulation": 2})
    check_runs([run], ClusterConfig(tasks_per_node=2))
    with pytest.raises(UserError, match=r"data\.batch_3d=4 does not divide among 4 processes x 2 .* multiple of 8"):
        check_runs([run], ClusterConfig(nodes=2, tasks_per_node=2))


def test_data_that_are_not_there_are_refused(tmp_path):
    data = {"sources": [{"name": "ct", "path": str(tmp_path / "gone")}], "crop_3d": [16, 16, 16]}
    with pytest.raises(UserError, match=r"gone.*--no-check"):
        check_runs([configured(tmp_path / "run", data=data)], ClusterConfig())


def test_a_run_that_continues_on_other_data_is_refused(tmp_path):
    run, folder = configured(tmp_path / "run"), tmp_path / "run" / "checkpoints" / "step-00000002"
    folder.mkdir(parents=True)
    check_runs([run], ClusterConfig())  # no seal: the start will pass it over
    stream = {"seed": 0, "epoch": 0, "position": 2, "manifests": {"shapes": "0" * 64}}
    (folder / "complete.json").write_text(json.dumps({"step": 2, "stream": stream}))
    with pytest.raises(UserError, match=r"the shards of source 'shapes' are neither.*--no-check"):
        check_runs([run], ClusterConfig())


def test_weights_to_start_from_must_be_there_until_the_run_has_its_own(tmp_path):
    run = configured(tmp_path / "run", init=str(tmp_path / "weights"))
    with pytest.raises(UserError, match="no file, run folder or installed model"):
        check_runs([run], ClusterConfig())
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    check_runs([run], ClusterConfig())


def test_a_disk_too_small_for_all_runs_of_a_sweep_is_refused(tmp_path, monkeypatch):
    runs = [configured(tmp_path / name, keep_last=2) for name in "ab"]
    size = bytes_of_checkpoints(runs[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 2 * size))
    check_runs(runs, ClusterConfig())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 2 * size - 1))
    check_runs(runs[:1], ClusterConfig())
    with pytest.raises(UserError, match=r"GB free, and checkpoints and weights will take .* lower keep_last"):
        check_runs(runs, ClusterConfig())
    kept = tmp_path / "a" / "checkpoints" / "step-00000002"  # of an earlier start: the new ones take its place
    kept.mkdir(parents=True)
    (kept / "weights").write_bytes(b"0")
    check_runs(runs, ClusterConfig())


def test_what_a_run_writes_follows_its_model_and_its_optimiser(tmp_path):
    plain, more = configured(tmp_path, keep_last=1), configured(tmp_path, keep_last=3)
    sgd = configured(tmp_path, keep_last=1, optimiser={"name": "sgd", "lr": 0.1})
    averaged = configured(tmp_path, keep_last=1, ema={"momentum": 0.9})
    a, b, c, d = map(bytes_of_checkpoints, (plain, more, sgd, averaged))
    parameters = (b - a) / 2 / 12  # AdamW: weights and two moments
    assert parameters == pytest.approx(5.7e6, rel=0.5)
    assert (a - c, d - a) == (2 * 4 * parameters, 2 * 4 * parameters)
