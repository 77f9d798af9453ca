"""Launching for real: two local processes, and two nodes of a SLURM cluster where there is one."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

# One worker: the runs are compared with each other, and their ranks want the other core.
pytestmark = pytest.mark.xdist_group("cluster")

SCANFORGE = str(Path(sys.executable).parent / "scanforge")


def write_config(tmp_path: Path, shards: dict[str, Path], name: str, **changes) -> Path:
    config = {
        "run_dir": str(tmp_path / name), "seed": 3, "steps": 20, "checkpoint_every": 2, "threads": 1,
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
def two_local(tmp_path_factory, tiny_shards) -> Path:
    """The run folder of two processes on this machine."""
    tmp_path = tmp_path_factory.mktemp("local")
    done = scanforge(
        "launch", write_config(tmp_path, tiny_shards, "run"), "--cluster", "local", "--tasks-per-node", "2"
    )
    assert done.returncode == 0, done.stderr
    assert "complete: step 20" in done.stdout
    return tmp_path / "run"


def test_two_local_processes_leave_the_run_folder_of_one(tmp_path, tiny_shards, two_local):
    done = scanforge("pretrain", write_config(tmp_path, tiny_shards, "run"))
    assert done.returncode == 0, done.stderr
    names = {p.name for p in two_local.iterdir()} - {"jobs"}
    assert names == {p.name for p in (tmp_path / "run").iterdir()}
    one, two = losses(tmp_path / "run"), losses(two_local)
    assert two[:2] == pytest.approx(one[:2], rel=1e-6)
    # Later steps only stay close: Adam turns the rounding of gradients that are zero in exact arithmetic (a bias
    # before a norm) into whole steps of the learning rate. test_engine holds the arithmetic itself to 1e-5.
    assert two == pytest.approx(one, rel=2e-2)


@pytest.fixture
def slurm() -> None:
    """A running cluster: `.ci/run` starts one with tests/slurm/start_slurm.sh."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20).returncode:
        pytest.skip("no SLURM cluster answers here; tests/slurm/start_slurm.sh starts one (root, Debian)")


@pytest.mark.slurm
def test_two_slurm_nodes_compute_what_two_local_processes_do(tmp_path, tiny_shards, two_local, slurm):
    config = write_config(tmp_path, tiny_shards, "run")
    done = scanforge("launch", config, "--cluster", "slurm", "--nodes", "2", "--time", "10", "--wait")
    assert done.returncode == 0, done.stderr
    assert "complete: step 20" in done.stdout
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in two_local.iterdir()}
    assert losses(tmp_path / "run") == losses(two_local)
    one, other = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "run", two_local))
    assert one == other


@pytest.mark.slurm
def test_a_preempted_job_is_requeued_and_ends_with_the_same_weights(tmp_path, tiny_shards, two_local, slurm):
    config = write_config(tmp_path, tiny_shards, "run")
    submitted = scanforge("launch", config, "--cluster", "slurm", "--nodes", "2", "--time", "60")
    job = submitted.stdout.split()[1].rstrip(";")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    subprocess.run(["scancel", "--signal", "USR2", job], check=True)  # what SLURM sends at preemption and time limit
    wait_until(lambda: (tmp_path / "run" / "pictures" / "step-00000020.png").exists())  # written last
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    assert "Restarts=1" in shown
    assert losses(tmp_path / "run") == losses(two_local)
    one, other = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "run", two_local))
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
