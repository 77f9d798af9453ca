"""Launching for real: two local processes, and two nodes of a SLURM cluster where there is one."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

SCANFORGE = str(Path(sys.executable).parent / "scanforge")


def write_config(tmp_path: Path, shards: dict[str, Path], name: str, **changes) -> Path:
    config = {
        "run_dir": str(tmp_path / name), "seed": 3, "steps": 6, "checkpoint_every": 2, "threads": 1,
        "backbone": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3},
        "objective": {"name": "spark", "block_2d": [4, 4], "block_3d": [4, 4, 4], "decoder_width": 32},
        "data": {
            "sources": [{"name": name, "path": str(path)} for name, path in shards.items()],
            "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 4, "batch_3d": 2, "workers": 0,
        },
        "engine": {"zero_stage": 1}, "optimiser": {"lr": 1e-3, "warmup_steps": 2},
    } | changes  # fmt: skip
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def scanforge(*words: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([SCANFORGE, *map(str, words)], capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_shards) -> Path:
    """The run folder of the same run in one process."""
    tmp_path = tmp_path_factory.mktemp("alone")
    done = scanforge("pretrain", write_config(tmp_path, tiny_shards, "run"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_two_local_processes_leave_the_same_run_folder(tmp_path, tiny_shards, alone):
    config = write_config(tmp_path, tiny_shards, "run")
    done = scanforge("launch", config, "--cluster", "local", "--tasks-per-node", "2")
    assert done.returncode == 0, done.stderr
    assert "complete: step 6" in done.stdout
    names = {p.name for p in (tmp_path / "run").iterdir()} - {"jobs"}
    assert names == {p.name for p in alone.iterdir()}
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)


@pytest.fixture
def slurm() -> None:
    """A running cluster: `.ci/run` starts one with tests/slurm/start_slurm.sh."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20).returncode:
        pytest.skip("no SLURM cluster answers here; tests/slurm/start_slurm.sh starts one (root, Debian)")


@pytest.mark.slurm
def test_two_slurm_nodes_leave_the_same_run_folder(tmp_path, tiny_shards, alone, slurm):
    config = write_config(tmp_path, tiny_shards, "run")
    done = scanforge("launch", config, "--cluster", "slurm", "--nodes", "2", "--time", "10", "--wait")
    assert done.returncode == 0, done.stderr
    assert "complete: step 6" in done.stdout
    names = {p.name for p in (tmp_path / "run").iterdir()} - {"jobs"}
    assert names == {p.name for p in alone.iterdir()}
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slurm
def test_a_preempted_job_is_requeued_and_ends_with_the_same_weights(tmp_path, tiny_shards, slurm):
    straight = write_config(tmp_path, tiny_shards, "straight", steps=30)
    broken = write_config(tmp_path, tiny_shards, "broken", steps=30)
    done = scanforge("launch", straight, "--cluster", "slurm", "--nodes", "2", "--time", "60", "--wait")
    assert done.returncode == 0, done.stderr
    submitted = scanforge("launch", broken, "--cluster", "slurm", "--nodes", "2", "--time", "60")
    job = submitted.stdout.split()[1].rstrip(";")
    metrics = tmp_path / "broken" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    subprocess.run(["scancel", "--signal", "USR2", job], check=True)  # what SLURM sends at preemption and time limit
    wait_until(lambda: (tmp_path / "broken" / "model.safetensors").exists() and len(losses(tmp_path / "broken")) == 30)
    restarts = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    assert "Restarts=1" in restarts
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("straight", "broken"))
    assert one == other


def wait_until(condition, seconds: float = 150) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.2)


def test_wrong_options_are_one_line(tmp_path, tiny_shards):
    config = write_config(tmp_path, tiny_shards, "run")
    for words in (("--cluster", "cloud"), ("--cluster", "local", "--nodes", "2"), ("--defaults", "nowhere")):
        done = scanforge("launch", config, *words)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
