"""A backbone and an objective from single files outside of the project, through the real command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from scanfoundry.backbones.models.description import read_info

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCANFOUNDRY = str(Path(sys.executable).parent / "scanfoundry")
STUNET = {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3}
TOYS = {  # the plug-in's file, its name, the backbone, the objective
    "objective": ("toy_objective.py", "toy_mean", STUNET, {"name": "toy_mean", "scale": 2.0}),
    "backbone": (
        "toy_backbone.py",
        "toy_net",
        {"name": "toy_net", "width": 6},
        {"name": "spark", "block_2d": [4, 4], "block_3d": [4, 4, 4], "decoder_width": 32},
    ),
}


def call(plugin: Path, *words: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"SCANFOUNDRY_PLUGINS": str(plugin), "SCANFOUNDRY_MODELS": str(plugin.parent / "models")}
    return subprocess.run([SCANFOUNDRY, *map(str, words)], env=environment, capture_output=True, text=True)


def called(plugin: Path, *words: object) -> str:
    done = call(plugin, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def recipe(path: Path, kind: str, shards: dict[str, Path]) -> Path:
    """Steps on tiny shards of images and volumes, with activation checkpointing and AdamW's preset of the family."""
    _, _, backbone, objective = TOYS[kind]
    content = {
        "run_dir": str(path.with_suffix("")), "seed": 3, "steps": 6, "checkpoint_every": 3, "threads": 1,
        "backbone": backbone, "objective": objective, "monitor_crops": 0,
        "engine": {"activation_checkpointing": True},
        "data": {
            "sources": [{"name": name, "path": str(folder)} for name, folder in shards.items()],
            "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 4, "batch_3d": 2, "workers": 0,
        },
        "optimiser": {"warmup_steps": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module", params=TOYS)
def trained(request, tmp_path_factory, tiny_shards) -> tuple[str, Path, Path, str]:
    """The kind, a copy of the plug-in far from the project, a run of three steps that went on to six, what it said."""
    folder = tmp_path_factory.mktemp(request.param)
    plugin = folder / TOYS[request.param][0]
    plugin.write_text((HERE / plugin.name).read_text())
    config = recipe(folder / "run.yaml", request.param, tiny_shards)
    called(plugin, "pretrain", config, "steps=3")
    return request.param, plugin, folder / "run", called(plugin, "pretrain", config)


@pytest.mark.slow
def test_it_trains_goes_on_and_is_released(trained, tmp_path):
    kind, plugin, run, said = trained
    assert "continuing from step 3" in said
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert {line["kind"] for line in lines} == {"2d", "3d"}
    assert all(np.isfinite(line["loss"]) for line in lines)
    if kind == "objective":
        assert all("toy_error" in line for line in lines)
    exported = tmp_path / "release"
    called(plugin, "models", "export", run, "--out", exported, "--licence", "cc0-1.0")
    assert json.loads((exported / "model.json").read_text())["backbone"]["name"] == TOYS[kind][2]["name"]
    assert TOYS[kind][1] in (exported / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["backbone"], indirect=True)
def test_a_toy_backbone_is_fine_tuned_and_predicts(trained, tmp_path):
    """Segmentation with the general U-shaped decoder, from the weights that were pre-trained."""
    _, plugin, run, _ = trained
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for i in range(8):
        labels = np.zeros((12, 14, 10), np.uint8)
        labels[3:8, 4:9, 2 : 5 + i % 3] = 1
        image = (rng.normal(0, 1, labels.shape) + 4 * labels).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "images" / f"case{i}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "labels" / f"case{i}.nii.gz")
    config = {
        "run_dir": str(tmp_path / "study"), "task": {"name": "segmentation"}, "checkpoint": str(run),
        "data": {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "modality": "mr"},
        "shots": [2], "schedule": {"steps": 3, "warmup_steps": 1}, "plan": {"batch": 2}, "bootstrap": 20,
        "worst_cases": 0, "device": "cpu", "compare_scratch": False,
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    called(plugin, "finetune", tmp_path / "study.yaml")
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert [row["arm"] for row in results["table"]] == ["full"]
    out = tmp_path / "out"
    case = tmp_path / "images" / "case0.nii.gz"
    called(plugin, "predict", "--model", tmp_path / "study", "--input", case, "--out", out)
    assert nibabel.load(next(out.glob("*.nii.gz"))).shape == (12, 14, 10)


@pytest.mark.parametrize("kind", TOYS)
def test_no_file_of_the_project_was_touched_for_it(kind):
    plugin, name, _, _ = TOYS[kind]
    packages = ("configs", "backbones", "datasets", "pretrain", "finetune", "launch")
    touched = [
        path
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".yaml", ".j2") and (name in path.read_text() or plugin in path.read_text())
    ]
    assert len(touched) == 0, touched


def test_without_the_plug_in_the_name_is_unknown_and_a_bad_plug_in_is_named(tmp_path, tiny_shards):
    config = recipe(tmp_path / "run.yaml", "backbone", tiny_shards)
    (tmp_path / "other.py").write_text("PLUGINS = {}\n")
    done = call(tmp_path / "other.py", "pretrain", config)
    assert done.returncode == 2, done.stderr
    assert "toy_net" in done.stderr
    taken = (HERE / "toy_backbone.py").read_text().replace('"toy_net"', '"vit"')
    (tmp_path / "taken.py").write_text(taken)
    done = call(tmp_path / "taken.py", "pretrain", config)
    assert done.returncode == 2, done.stderr
    assert "a plug-in adds a backbone of the name 'vit', which is taken" in done.stderr
    (tmp_path / "wrong.py").write_text("PLUGINS = {'backbone': ['toy_net']}\n")
    done = call(tmp_path / "wrong.py", "pretrain", config)
    assert done.returncode == 2, done.stderr
    assert "adds the backbone 'toy_net', which is no EncoderConfig" in done.stderr


@pytest.mark.slow
def test_what_a_release_says_of_a_toy(trained):
    _, _, run, _ = trained
    content = json.loads((run / "model.json").read_text())
    assert content["step"] == 6
    if content["backbone"]["name"] == "stunet":  # its weights are a STU-Net's, which needs no plug-in
        assert read_info(run / "model.json").objective == "toy_mean"
