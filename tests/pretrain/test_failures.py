"""Full and read-only disks, locks, shards that went, losses that are no numbers: one line, nothing lost."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import warm
import yaml

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check
from scanfoundry.datasets.storage.run_folder import LOCK
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.training.run_folder import check_same_run, held

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def config(tmp_path: Path, shards: Path, run_dir: Path, **changes) -> Path:
    content = {
        "run_dir": str(run_dir), "seed": 3, "steps": 6, "checkpoint_every": 2, "threads": 1, "monitor_crops": 0,
        "keep_last": 2,
        "backbone": {"name": "vit", "size": "Ti", "patch_3d": [4, 8, 8]}, "objective": {"name": "mae"},
        "data": {"sources": [{"name": "mr", "path": str(shards)}], "crop_3d": [8, 16, 16], "batch_3d": 2, "workers": 0},
        "optimiser": {"lr": 1e-3, "warmup_steps": 2},
    } | changes  # fmt: skip
    path = tmp_path / f"{run_dir.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def pretrain(path: Path) -> subprocess.CompletedProcess:
    return warm.run([warm.SCANFOUNDRY, "pretrain", path], capture_output=True, text=True, timeout=200)


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def refused(done: subprocess.CompletedProcess) -> str:
    said = [line for line in done.stderr.splitlines() if line.startswith("scanfoundry: ")]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, whose size `mount -o remount` changes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_loses_nothing(tmp_path, tiny_shards, small_disk):
    path = config(tmp_path, tiny_shards["mr"], small_disk / "run")
    said = refused(pretrain(path))
    assert "No space left on device" in said
    assert "checkpoint" in said
    assert [p.name for p in (small_disk / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    subprocess.run(["mount", "-o", "remount,size=1g", small_disk], check=True)
    assert "continuing from step 2" in pretrain(path).stderr
    straight = config(tmp_path, tiny_shards["mr"], tmp_path / "straight")
    assert pretrain(straight).returncode == 0
    assert losses(small_disk / "run") == losses(tmp_path / "straight")
    one, other = ((folder / "model.safetensors").read_bytes() for folder in (small_disk / "run", tmp_path / "straight"))
    assert one == other


def test_a_read_only_run_folder_is_one_line(tmp_path, tiny_shards, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    said = refused(pretrain(config(tmp_path, tiny_shards["mr"], small_disk / "run")))
    assert f"cannot write to the run folder {small_disk / 'run'}: Read-only file system" in said


def test_the_lock_of_a_dead_process_is_none_and_that_of_a_living_one_is_respected(tmp_path):
    code = f"""
import torch, sys
from pathlib import Path
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.training.run_folder import held
with held(Path({str(tmp_path)!r}), World(0, 1, 0, 1, torch.device("cpu")), 1.0):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = warm.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on"), held(tmp_path, ALONE, 0.3):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).read_text()
    with held(tmp_path, ALONE, 0.3):
        pass


def test_a_shard_that_went_is_named(tmp_path, tiny_shards):
    import shutil

    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards["mr"], shards)
    gone = next(shards.glob("*.tar"))
    gone.unlink()
    said = refused(pretrain(config(tmp_path, shards, tmp_path / "run")))
    assert gone.name in said


def test_losses_that_are_no_numbers_end_the_run_and_name_the_samples(tmp_path, tiny_shards):
    path = config(
        tmp_path, tiny_shards["mr"], tmp_path / "run", optimiser={"lr": 1e30, "warmup_steps": 0}, max_bad_steps=2
    )
    said = refused(pretrain(path))
    assert "not finite in 2 steps in a row" in said
    assert f"init={tmp_path / 'run'}" in said
    named = list((tmp_path / "run").glob("nonfinite-*.txt"))
    assert len(named) == 2
    assert all(len(file.read_text().split()) == 2 for file in named)


STUDY = {"config.yaml": "task: {}\ndata: {}\nrun_dir: x\n", "plan.json": "{}"}


@pytest.mark.parametrize("content", [{"a.docx": ""}, {"config.yaml": "editor: vim\n"}, {"scan.nii.gz": ""}, STUDY])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path, content):
    folder = tmp_path / "home"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    made = check(PretrainConfig, yaml.safe_load(config(tmp_path, tmp_path, folder).read_text()), "test")
    with pytest.raises(UserError, match="is no run folder of a pre-training: it holds"):
        check_same_run(made)
    assert {path.name: path.read_text() for path in folder.iterdir()} == content


def test_what_a_launch_or_a_person_leaves_before_the_first_start_is_no_obstacle(tmp_path):
    folder = tmp_path / "run"
    (folder / "jobs" / "stamp").mkdir(parents=True)
    for name in (LOCK, "my_run.yaml", "job-3.out", ".config.yaml.17.part"):
        (folder / name).write_text("")
    check_same_run(check(PretrainConfig, yaml.safe_load(config(tmp_path, tmp_path, folder).read_text()), "test"))
