"""A whole run whose source grows: refused without a word for it, then continued bit for bit, with its new patients."""

import contextlib
import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import warm
import yaml
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check
from scanfoundry.datasets.shards.build import BuildOptions, append
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.pretrain.checkpoint import checkpoint
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import ALONE
from scanfoundry.pretrain.training.planned import planned

STEPS = 14
WORD = "data.allow_grown=true"


def content(shards: Path, run_dir: Path) -> dict:
    return {
        "run_dir": str(run_dir), "seed": 3, "steps": STEPS, "checkpoint_every": 2, "threads": 1, "monitor_crops": 8,
        "backbone": {"name": "vit", "size": "Ti", "patch_2d": [8, 8]}, "objective": {"name": "mae"},
        "data": {
            "sources": [{"name": "us", "path": str(shards)}], "crop_2d": [16, 16], "batch_2d": 4, "workers": 1,
        },
        "optimiser": {"lr": 1e-3, "warmup_steps": 2},
    }  # fmt: skip


def start(run: Path, *words: str) -> warm.Popen:
    return warm.Popen([warm.SCANFOUNDRY, "pretrain", f"{run}.yaml", *words], stderr=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int, process: warm.Popen) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate(timeout=30)[1]


def wait_for_growth(run: Path, process: warm.Popen) -> None:
    """Until a checkpoint knows that the source grew: they are written beside the steps."""
    while process.poll() is None:
        for seal in run.glob("checkpoints/step-*/complete.json"):
            with contextlib.suppress(FileNotFoundError):  # it was the oldest
                if "grown" in json.loads(seal.read_text())["stream"]:
                    return


def ended(process: warm.Popen, code: int = 0) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    return errors


def plan(run: Path, data: Path, allow: bool) -> None:
    settings = content(data, run)
    settings["data"]["allow_grown"] = allow
    found = checkpoint.newest(run / "checkpoints", None, ALONE)
    assert found is not None
    planned(check(PretrainConfig, settings, "test"), ALONE, found, checkpoint.position(found, 3)[0])


@pytest.mark.slow
def test_a_run_goes_on_with_appended_scans_bit_for_bit(
    tmp_path: Path, tiny_shards: dict[str, Path], shallow_vit
) -> None:
    data = Path(shutil.copytree(tiny_shards["us"], tmp_path / "data"))
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    for run in (killed, straight):
        Path(f"{run}.yaml").write_text(yaml.safe_dump(content(data, run)))
    first = start(killed)
    wait_for_step(killed, 4, first)
    first.send_signal(signal.SIGTERM)
    ended(first, 128 + signal.SIGTERM)
    step = checkpoint.verified_step(_newest(killed))
    before = json.loads((_newest(killed) / "complete.json").read_text())
    assert before["stream"]["manifests"] == {"us": DataSet(data).manifest_hash}
    assert "grown" not in before["stream"]

    grow(data, tmp_path / "new", tiny_shards)
    shutil.copytree(killed, straight)
    errors = ended(start(killed), 2)
    assert f"scans were appended to source 'us' since step {step}: set {WORD} to go on with them, or " in errors
    assert "Traceback" not in errors

    again = start(killed, WORD)
    wait_for_growth(killed, again)
    again.send_signal(signal.SIGKILL)
    again.wait()
    rest = start(killed)  # the word was given once, and a checkpoint knows
    assert f"source 'us' has grown by 5 scans after step {step}: they join from step " in ended(start(straight, WORD))
    assert f"source 'us' has grown by 5 scans after step {step}: they join from step " in ended(rest)
    for name in ("model.safetensors", "patients.txt"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (killed, straight)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS
    check_records(killed, data, step)


def grow(data: Path, new: Path, tiny_shards: dict[str, Path]) -> None:
    rng = np.random.default_rng(7)
    new.mkdir()
    for number in range(5):
        Image.fromarray(rng.integers(0, 200, (22, 24), np.uint8)).save(new / f"new{number}.png")
    append([new], data, BuildOptions(modality="us", workers=1, key_file=tiny_shards["us"].parents[1] / "site.key"))


def check_records(run: Path, data: Path, step: int) -> None:
    """What the run says of its data, and what it takes and refuses afterwards."""
    now, seal = DataSet(data), json.loads((_newest(run) / "complete.json").read_text())
    (before,) = now.earlier_manifests()
    assert seal["stream"]["manifests"] == {"us": before}
    assert seal["stream"]["grown"] == [{"step": step, "manifests": {"us": now.manifest_hash}}]
    patients = {patient.decode() for patient in now.samples()["patient"]}
    assert set((run / "patients.txt").read_text().split()) == patients
    assert len(patients) == 17
    (source,) = json.loads((run / "model.json").read_text())["sources"]
    assert source["manifest_sha256"] == now.manifest_hash
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["allow_grown"] is False  # as of its last start
    plan(run, data, allow=False)
    (data / "manifest-000000.json").replace(data / "manifest.json")
    with pytest.raises(UserError, match=f"'us' has lost the scans .* since step {step}; restore them"):
        plan(run, data, allow=True)


def _newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def test_ranks_that_see_other_manifests_do_not_start(
    tmp_path: Path, tiny_shards: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append may end between the looks of two ranks: each would draw from a stream of its own."""
    settings = check(PretrainConfig, content(tiny_shards["us"], tmp_path / "run"), "test")
    assert planned(settings, ALONE, None, 0).scans == 12
    monkeypatch.setattr("scanfoundry.pretrain.training.planned.gather_objects", lambda mine, _: [mine, ["other"]])
    with pytest.raises(UserError, match="appended to a source while the run was starting; give the same command again"):
        planned(settings, ALONE, None, 0)
