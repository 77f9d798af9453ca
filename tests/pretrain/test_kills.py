"""Thirty kills at random moments, many of them inside a checkpoint's write: no run lost, no half checkpoint loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import yaml
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed  # once, in the parent: its children start at once
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
ensure_torchvision()
import timm.models.vision_transformer
from scanfoundry.backbones import vit
vit.WIDTH_DEPTH_HEADS["Ti"] = (192, 2, 3)  # blocks: what a kill may cost does not depend on them
from scanfoundry.configs.loading import check
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.training.loop import run

def child(name):
    pid = os.fork()
    if pid == 0:
        content = yaml.safe_load(Path(sys.argv[1]).read_text())
        config = check(PretrainConfig, content | {"run_dir": f"{content['run_dir']}/{name}"}, "test")
        try:
            run(config)
        finally:
            os._exit(0)
    return pid

root = Path(yaml.safe_load(Path(sys.argv[1]).read_text())["run_dir"])
kills = inside = starting = 0
draw = random.Random(int(sys.argv[2]))
os.waitpid(child("straight"), 0)
folder = root / "killed" / "checkpoints"
while kills < 30:
    pid = child("killed")
    until = time.monotonic() + draw.uniform(0.0, 0.5)
    writing = draw.random() < 0.5  # wait for a checkpoint to be under way
    while time.monotonic() < until or (writing and not list(folder.glob(".tmp-*"))):
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise SystemExit(f"the run ended by itself after {kills} kills: more steps are needed")
        time.sleep(0.0005)
    if writing:
        time.sleep(draw.uniform(0, 0.1))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    inside += bool(list(folder.glob(".tmp-*")))
    starting += not folder.exists()
os.waitpid(child("killed"), 0)
print(json.dumps({"kills": kills, "inside": inside, "before_the_first_checkpoint": starting}))
"""


def losses(run_dir: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


MAE = {"name": "mae", "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2}


@pytest.mark.slow
def test_thirty_kills_lose_nothing(tmp_path, tiny_shards):
    content = {
        "run_dir": str(tmp_path), "seed": 3, "steps": 180, "checkpoint_every": 2, "threads": 1, "monitor_crops": 0,
        "backbone": {"name": "vit", "size": "Ti", "patch_3d": [4, 8, 8]}, "objective": MAE,
        "data": {"sources": [{"name": "mr", "path": str(tiny_shards["mr"])}], "crop_3d": [8, 16, 16], "batch_3d": 2,
                 "workers": 0},
        "optimiser": {"lr": 1e-3, "warmup_steps": 2},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "kills.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "kills.py", tmp_path / "config.yaml", "1"],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 30
    assert found["inside"] >= 5, found
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert len(losses(tmp_path / "killed")) == 180
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "killed"))
    assert one == other
    assert not list((tmp_path / "killed" / "checkpoints").glob(".tmp-*"))
    print(found)
