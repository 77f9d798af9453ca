"""Without any extra: fine-tuning, prediction and the list of models work, and what is missing is named in one line.

The environment is a real one: a venv of its own, with links to the distributions that `dependencies` of pyproject.toml
leads to, and nothing else of the environment that the tests run in.
"""

import csv
import subprocess
import tomllib
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scanfoundry.configs.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("configs", "backbones", "datasets", "pretrain", "finetune", "launch")
LEFT_OUT = {"deepspeed", "wandb", "submitit", "webdataset", "pydicom", "dcm2niix", "highdicom", "pylibjpeg", "onnx",
            "onnxscript", "onnxruntime", "s3fs", "tensorboard"}  # fmt: skip


def closure(requirements: list[str]) -> dict[str, Distribution]:
    """The installed distributions that the requirements lead to, by name."""
    found: dict[str, Distribution] = {}
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        found[name] = distribution(name)
        for text in found[name].requires or []:
            todo += [(Requirement(text), each) for each in ("", *requirement.extras)]
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment that has the core dependencies alone."""
    folder = tmp_path_factory.mktemp("core") / "venv"
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    for each in closure(PROJECT["dependencies"]).values():
        for top in {path.parts[0] for path in each.files or [] if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(each.locate_file(top))
    own = distribution("scanfoundry")
    (site / "scanfoundry").mkdir()
    for package in PACKAGES:
        (site / "scanfoundry" / package).symlink_to(ROOT / package)
    (site / "scanfoundry-0.dist-info").mkdir()
    (site / "scanfoundry-0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: scanfoundry\nVersion: {own.version}\n"
    )
    return folder / "bin" / "python"


@pytest.fixture
def scanfoundry(python, tmp_path, site_key_file):
    """Run a command of the bare environment."""

    def run(*words: str | Path) -> subprocess.CompletedProcess:
        # Segmentation does without MONAI, whose import takes twice as long as all else together.
        code = "import sys; sys.modules['monai'] = None; from scanfoundry.launch.cli.main import main; main()"
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
                       "PYTHONSAFEPATH": "1", "SCANFOUNDRY_MODELS": str(tmp_path / "models"),
                       "SCANFOUNDRY_KEY_FILE": str(site_key_file)}  # fmt: skip
        return subprocess.run([python, "-c", code, *map(str, words)], env=environment, cwd=tmp_path,
                              capture_output=True, text=True, timeout=280)  # fmt: skip

    return run


@pytest.fixture
def study(tmp_path) -> Path:
    """The configuration of a tiny segmentation; a note lies among the scans, as notes do."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for i in range(6):
        labels = np.zeros((12, 12, 12), np.uint8)
        labels[3 + i % 3 : 9, 3:9, 4:9] = 1
        image = rng.normal(100, 10, labels.shape) + 60 * labels
        for folder, voxels in (("images", image.astype(np.float32)), ("labels", labels)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / folder / f"p{i}.nii.gz")
    (tmp_path / "images" / "notes.txt").write_text("scanned on a Monday")
    content = {
        "run_dir": str(tmp_path / "run"), "task": {"name": "segmentation"}, "shots": [2], "seeds": [0],
        "data": {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "modality": "mr"},
        "backbone": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3},
        "split": {"test_fraction": 0.3}, "schedule": {"steps": 2, "warmup_steps": 1}, "device": "cpu",
        "plan": {"patch": [8, 8, 8], "batch": 1}, "bootstrap": 20, "worst_cases": 1,
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def one_line(done: subprocess.CompletedProcess, extra: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f'pip install "scanfoundry[{extra}]"' in done.stderr


def test_the_environment_has_no_extra(python):
    code = "import sys\nfrom importlib.util import find_spec\nsys.exit([n for n in sys.argv[1:] if find_spec(n)] or 0)"
    done = subprocess.run([python, "-c", code, *LEFT_OUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", ["pretrain", "dicom", "s3", "onnx", "tensorboard"])
def test_every_package_of_an_extra_is_known_to_the_command_line(extra):
    known = {module for module, of in EXTRAS.items() if of == extra}
    listed = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"][extra]}
    brought = {name: {path.parts[0].removesuffix(".py") for path in distribution(name).files or []} for name in listed}
    assert all(known & modules for modules in brought.values())  # none that a message could not name
    assert known <= set().union(*brought.values())  # none that the extra would not bring


@pytest.mark.slow
def test_fine_tuning_prediction_and_the_list_of_models_need_no_extra(scanfoundry, study, tmp_path):
    done = scanfoundry("finetune", study)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    done = scanfoundry("predict", "--model", tmp_path / "run", "--input", tmp_path / "images", "--out", tmp_path / "p")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "p").glob("*.nii.gz"))) == 6
    with (tmp_path / "p" / "predictions.csv").open() as stream:
        assert all(not row.get("error") for row in csv.DictReader(stream))
    done = scanfoundry("models", "list")
    assert done.returncode == 0, done.stderr
    assert "stunet-s" in done.stdout


@pytest.mark.slow
def test_what_needs_an_extra_says_which(scanfoundry, study, tmp_path):
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.Modality, header.PatientID = "CT", "p"
    (tmp_path / "dicom").mkdir()
    header.save_as(tmp_path / "dicom" / "slice", enforce_file_format=False)
    one_line(scanfoundry("data", "build", tmp_path / "images", "--out", tmp_path / "shards"), "pretrain")
    one_line(scanfoundry("launch", "demo", f"run_dir={tmp_path / 'l'}", "--dry-run"), "pretrain")
    one_line(scanfoundry("pretrain", "demo"), "pretrain")
    content = yaml.safe_load(study.read_text())
    content["data"]["images"] = str(tmp_path / "dicom")
    study.write_text(yaml.safe_dump(content))
    one_line(scanfoundry("finetune", study), "dicom")
