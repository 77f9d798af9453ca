"""What launching is tried with: a small run's configuration, the command line, and the run that others must equal."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm
import yaml
from PIL import Image


class Lab:
    """A folder of runs, and the command line to start them with."""

    def __init__(self, folder: Path, shards: dict[str, Path]) -> None:
        self.folder, self.shards = folder, shards

    def config(self, name: str, **changes) -> Path:
        """A configuration file whose run folder is `folder`/name."""
        content = {
            "run_dir": str(self.folder / name), "seed": 3, "steps": 20, "checkpoint_every": 2, "threads": 1,
            "backbone": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3},
            "objective": {"name": "spark", "block_2d": [4, 4], "block_3d": [4, 4, 4], "decoder_width": 32},
            "data": {
                "sources": [{"name": name, "path": str(path)} for name, path in self.shards.items()],
                "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 4, "batch_3d": 2, "workers": 0,
            },
            "engine": {"zero_stage": 1}, "optimiser": {"lr": 1e-3, "warmup_steps": 2},
        } | changes  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def study(self, name: str, **changes) -> Path:
        """A configuration file of a classification with two trials, and the images for it."""
        rng, images = np.random.default_rng(0), self.folder / "images"
        images.mkdir(exist_ok=True)
        lines = ["id,class"]
        for number in range(24):
            grey = rng.normal(90 + 60 * (number % 2), 10, (32, 32)).clip(0, 255)
            Image.fromarray(grey.astype(np.uint8)).save(images / f"s{number:02d}.png")
            lines.append(f"s{number:02d},{'bright' if number % 2 else 'dark'}")
        (self.folder / "labels.csv").write_text("\n".join(lines) + "\n")
        content = {
            "run_dir": str(self.folder / name), "task": {"name": "classification"}, "seeds": [0, 1], "shots": [2],
            "data": {"images": str(images), "labels": str(self.folder / "labels.csv"), "modality": "us"},
            "backbone": {"name": "resenc", "features": [8, 16], "blocks": [1, 1], "strides": [[2, 2, 2]]},
            "split": {"test_fraction": 0.3}, "schedule": {"steps": 3, "warmup_steps": 1}, "plan": {"batch": 2},
            "bootstrap": 20, "worst_cases": 2, "device": "cpu",
        } | changes  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def defaults(self, **content) -> Path:
        """A file of cluster defaults."""
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def start(self, *words: str | Path, **environment: str) -> warm.Popen:
        """`scanfoundry launch WORDS`, running."""
        # A path of modules is read as python starts.
        popen: Any = subprocess.Popen if "PYTHONPATH" in environment else warm.Popen
        return popen(
            [warm.SCANFOUNDRY, "launch", *map(str, words)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | environment,
        )  # fmt: skip

    def launch(self, *words: str | Path, code: int = 0) -> str:
        """`scanfoundry launch WORDS` to its end; gives what it printed."""
        process = self.start(*words)
        out, errors = process.communicate(timeout=280)
        assert process.returncode == code, out + errors
        return out + errors


def losses(run_dir: Path) -> list[float]:
    """The loss of every step so far."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def notes(run_dir: Path) -> list[dict]:
    """What the newest job of a run noted down about its lives."""
    path = sorted(run_dir.glob("jobs/*/job.json"))[-1].with_name("lives.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition: Callable[[], object], seconds: float = 150) -> None:
    """Wait for a condition; fail when it does not come."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.1)


def ranks(run_dir: Path) -> dict[int, int]:
    """The process ids of a run's living tasks by rank, found by the job folder in their commands."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            pairs = (line.partition("=") for line in (folder / "environ").read_bytes().decode().split("\0"))
        except OSError:
            continue
        if words[1:4] == ["-u", "-m", "submitit.core._submit"] and words[4].startswith(f"{run_dir}/"):
            environment = {name: value for name, _, value in pairs}
            rank = environment.get("SLURM_PROCID") or environment.get("SUBMITIT_LOCAL_GLOBALID")
            found[int(rank or 0)] = int(folder.name)
    return found


@pytest.fixture
def tools() -> tuple[Callable, Callable, Callable, Callable]:
    """losses, notes, until, ranks."""
    return losses, notes, until, ranks


@pytest.fixture
def lab(tmp_path, tiny_shards) -> Lab:
    return Lab(tmp_path, tiny_shards)


@pytest.fixture
def study_lab(tmp_path) -> Lab:
    """A lab for fine-tuning studies, without shards."""
    return Lab(tmp_path, {})


@pytest.fixture(scope="session")
def two_local(tmp_path_factory, tiny_shards) -> Path:
    """The run folder of two processes on this machine that nobody disturbed."""
    lab = Lab(tmp_path_factory.mktemp("local"), tiny_shards)
    said = lab.launch(lab.config("run"), "--cluster", "local", "--tasks-per-node", "2")
    assert "complete: step 20" in said
    return lab.folder / "run"
