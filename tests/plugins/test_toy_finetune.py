"""A task, metrics and an output format from single files outside of the project, through the real command line."""

import csv
import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import warm
import yaml
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STUNET = {"name": "stunet", "size": "S", "strides": [[2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]]}


def call(plugins: list[str], *words: object) -> subprocess.CompletedProcess:
    named = os.pathsep.join(str(HERE / name) for name in plugins)
    environment = os.environ | {"SCANFOUNDRY_PLUGINS": named}
    return warm.run([warm.SCANFOUNDRY, *map(str, words)], env=environment, capture_output=True)


def called(plugins: list[str], *words: object) -> str:
    done = call(plugins, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def study(folder: Path, **changes: object) -> Path:
    content = {
        "run_dir": str(folder / "run"), "backbone": STUNET, "shots": [4], "split": {"test_fraction": 0.4},
        "schedule": {"steps": 3, "warmup_steps": 1}, "plan": {"batch": 2}, "bootstrap": 20, "worst_cases": 2,
        "device": "cpu", **changes,
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> Path:
    """A finished study of the toy task on 20 images, brighter with each grade."""
    folder, rng = tmp_path_factory.mktemp("graded"), np.random.default_rng(0)
    (folder / "images").mkdir()
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "grade"])
        for i in range(20):
            image = rng.normal(60 + 60 * (i % 3), 10, (32, 32)).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / "images" / f"p{i:02d}.png")
            writer.writerow([f"p{i:02d}", i % 3])
    data = {"images": str(folder / "images"), "labels": str(folder / "labels.csv"), "modality": "xr"}
    called(["toy_task.py", "toy_metric.py"], "finetune", study(folder, task="grade", data=data))
    return folder


def test_a_task_of_one_file_runs_from_cases_to_report(graded):
    results = json.loads((graded / "run" / "results.json").read_text())
    assert (results["task"], results["overview"]) == ("grade", ["grades off", "right", "scored"])
    row = results["table"][0]["metrics"]
    assert row["grades off"]["value"] == np.mean([-record["score"] for record in results["cells"][0]["records"]])
    assert row["scored"]["value"] == 1
    page = (graded / "run" / "report.html").read_text()
    for text in ("Few-shot grade", "Grades off: lower is better.", "scored: higher is better.", "Toy chart of grades."):
        assert text in page
    assert "per class" not in page


def test_a_model_of_the_task_predicts(graded):
    words = ["predict", "--model", graded / "run", "--input", graded / "images", "--out", graded / "out"]
    called(["toy_task.py"], *words, "--device", "cpu")
    rows = list(csv.DictReader((graded / "out" / "predictions.csv").open()))
    assert len(rows) == 20
    assert all(0 <= float(row["grade"]) <= 2 for row in rows)
    without = call([], *words)
    assert without.returncode == 2
    assert "'grade'" in without.stderr


def test_options_that_the_task_does_not_read_are_refused(graded):
    refused = {
        "loss.dice=2": "it reads: none",
        "schedule.foreground=0.2": "a grade sees the whole scan",
        "recipes=[knn]": "for grade take full",
        "task.hihgest=3": "did you mean 'highest'",
    }
    for word, why in refused.items():
        given = ["checkpoint=x", "backbone=null"] if word.startswith("recipes") else []
        done = call(["toy_task.py"], "finetune", graded / "study.yaml", word, *given)
        assert done.returncode == 2
        assert why in " ".join(done.stderr.split())


def test_metrics_and_outputs_of_single_files(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for i in range(12):
        labels = np.zeros((16, 16, 8), np.uint8)
        x, y = rng.integers(2, 8, 2)
        labels[x : x + 5, y : y + 5, 2:6] = 1
        for name, voxels in (("images", 60 * labels + rng.normal(100, 10, labels.shape)), ("labels", labels)):
            nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)), tmp_path / name / f"q{i:02d}.nii.gz")
    data = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "modality": "mr"}
    plugins = ["toy_metric.py", "toy_output.py"]
    called(plugins, "finetune", study(tmp_path, task={"name": "segmentation", "classes": ["cube"]}, data=data))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    records = results["cells"][0]["records"]
    assert results["table"][0]["metrics"]["worst dice"]["value"] == min(record["score"] for record in records)
    assert "worst dice: higher is better." in (tmp_path / "run" / "report.html").read_text()
    one = tmp_path / "images" / "q00.nii.gz"
    words = ["predict", "--model", tmp_path / "run", "--input", one, "--device", "cpu"]
    called(plugins, *words, "--out", tmp_path / "npy", "--format", "npy")
    called([], *words, "--out", tmp_path / "nifti")
    made = nib.load(tmp_path / "nifti" / "q00.nii.gz").get_fdata()
    assert np.array_equal(np.load(tmp_path / "npy" / "q00.npy"), made.T)
    assert "npy' is not known" in call([], *words, "--out", tmp_path / "no", "--format", "npy").stderr


def test_a_task_of_the_project_is_one_file_and_one_line(tmp_path):
    tree = tmp_path / "scanfoundry"
    tree.mkdir()
    for name in ("configs", "backbones", "datasets", "pretrain", "launch"):
        (tree / name).symlink_to(ROOT / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "finetune", tree / "finetune", ignore=ignored)
    shutil.copy(HERE / "toy_task.py", tree / "finetune" / "tasks" / "grade.py")
    registry = tree / "finetune" / "config" / "tasks" / "registry.py"
    line = '    ("tasks.grade:GradeTask", "tasks.grade:Grade"),\n'
    registry.write_text(registry.read_text().replace("TASKS = (\n", f"TASKS = (\n{line}"))
    olds = {path: ROOT / path.relative_to(tree) for path in tree.joinpath("finetune").rglob("*.py")}
    changed = [path for path, old in olds.items() if not old.is_file() or not filecmp.cmp(path, old, False)]
    assert sorted(path.name for path in changed) == ["grade.py", "registry.py"]
    code = (
        "from scanfoundry.finetune.config.study import FinetuneConfig\n"
        "from scanfoundry.finetune.config.tasks.registry import tasks\n"
        "task = {'name': 'grade', 'highest': 4}\n"
        "content = {'run_dir': 'x', 'task': task, 'data': {'images': 'x'}, 'backbone': {'name': 'vit'}}\n"
        "found = FinetuneConfig.model_validate(content).task\n"
        "print(type(found).__module__, found.highest, tasks()['grade'].adapter.headline)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "SCANFOUNDRY_PLUGINS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.strip() == "scanfoundry.finetune.tasks.grade 4 grades off", done.stderr
