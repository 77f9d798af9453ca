"""Broken files at the command line: quarantined, or one clear line and exit code 2; nothing is written over."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import warm
import yaml


def scanfoundry(*words: str | Path) -> subprocess.CompletedProcess:
    return warm.run([warm.SCANFOUNDRY, *words], capture_output=True, text=True, timeout=120)


def refused(done: subprocess.CompletedProcess, said: str) -> None:
    message = [line for line in done.stderr.splitlines() if line.startswith("scanfoundry: ")]
    assert done.returncode == 2, done.stderr
    assert len(message) == 1, done.stderr
    assert said in message[0]
    assert "Traceback" not in done.stderr


@pytest.fixture
def shards(tmp_path: Path, tiny_shards: dict[str, Path]) -> Path:
    return shutil.copytree(tiny_shards["mr"], tmp_path / "shards")


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> Path:
    path = tmp_path / "run.yaml"
    content = {
        "run_dir": str(tmp_path / "run"), "steps": 2, "checkpoint_every": 1, "threads": 1,
        "backbone": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3},
        "objective": {"name": "spark", "block_2d": [4, 4], "block_3d": [4, 4, 4], "decoder_width": 32},
        "data": {"sources": [{"name": "mr", "path": str(shards)}], "crop_3d": [8, 16, 16], "batch_3d": 2, "workers": 1},
        "optimiser": {"warmup_steps": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 0xFF
    path.write_bytes(content)


def test_a_corrupt_nifti_is_quarantined(tmp_path, real_data):
    source = tmp_path / "scans"
    source.mkdir()
    for path in sorted((real_data / "msd_task04_hippocampus" / "imagesTr").iterdir())[:12]:
        shutil.copy(path, source)
    victim = sorted(source.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:5000])
    done = scanfoundry("data", "build", source, "--out", tmp_path / "out", "--modality", "mr", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "11 scans" in done.stdout
    assert "1 could not be read or trusted" in done.stdout
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == victim.name
    assert json.loads(line)["reason"]
    refused(scanfoundry("data", "build", victim, "--out", tmp_path / "all_bad"), "quarantine")


def test_a_corrupt_or_cut_shard_is_named(shards, config):
    tar = next(shards.glob("*.tar"))
    whole = tar.read_bytes()
    flip(tar, 0.5)
    refused(scanfoundry("data", "check", shards), tar.name)
    tar.write_bytes(whole[: len(whole) // 2])
    refused(scanfoundry("pretrain", config), tar.name)


def test_a_damaged_checkpoint_is_passed_over_and_all_damaged_are_refused(tmp_path, config):
    assert scanfoundry("pretrain", config).returncode == 0
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    one, two = sorted((tmp_path / "run" / "checkpoints").iterdir())
    state = two / "rank-00000.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    done = scanfoundry("pretrain", config)
    assert done.returncode == 0, done.stderr
    assert "is broken" in done.stdout + done.stderr
    assert "continuing from step 1" in done.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    for folder in (one, two):
        (folder / "complete.json").write_text("{")
    refused(scanfoundry("pretrain", config), "every checkpoint")


def test_a_truncated_release_is_refused(tmp_path, config, shards):
    assert scanfoundry("pretrain", config).returncode == 0
    release = tmp_path / "run" / "model.safetensors"
    release.write_bytes(release.read_bytes()[:-1000])
    study = ["finetune", "demo", f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'study'}"]
    refused(scanfoundry(*study, f"data.images={shards}", f"data.labels={shards}"), "model.safetensors")
    assert not (tmp_path / "study").exists()
    refused(scanfoundry("predict", "--model", tmp_path / "run", "--input", shards, "--out", tmp_path / "out"), "model")
