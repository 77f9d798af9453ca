"""What is not installed is named in one line, with what installs it."""

import subprocess
import sys

import pytest
import warm

from scanfoundry.backbones import find
from scanfoundry.configs.errors import UserError

WITHOUT = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {gone!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {gone!r} else real(name, package)
from scanfoundry.launch.cli.main import main
main({words!r})
"""


def scanfoundry_without(gone: set[str], *words: str) -> subprocess.CompletedProcess:
    code = WITHOUT.format(gone=gone, words=list(words))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)


def test_an_export_without_onnx_says_what_installs_it(tmp_path):
    gone = {"onnx", "onnxscript", "onnxruntime"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text('{"kind": "finetuned"}')
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    done = scanfoundry_without(
        gone, "models", "export", str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "x")
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert 'pip install "scanfoundry[onnx]"' in done.stderr
    assert "onnxruntime" in done.stderr


def test_another_package_is_named_too(tmp_path):
    done = scanfoundry_without({"yaml"}, "pretrain", "demo")
    assert done.returncode != 0
    done = scanfoundry_without(
        {"submitit"}, "launch", "spark_stunet_volumes", f"run_dir={tmp_path / 'run'}", "--dry-run"
    )
    assert done.returncode == 2, done.stderr
    assert "needs the package 'submitit', which is not installed: pip install" in done.stderr
    assert '"scanfoundry[pretrain]"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("stunet-s", "'scanfoundry models get stunet-s' installs it"), ("stunet-z", "did you mean 'stunet-"),
     ("runs/nothing", "check the name")],
)  # fmt: skip
def test_a_model_that_is_not_installed_says_how_to_get_it(name, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SCANFOUNDRY_MODELS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        find(name)
    assert said in str(caught.value)


def test_launch_and_pretrain_say_it_before_anything_else(tmp_path):
    done = warm.run([warm.SCANFOUNDRY, "launch", "spark_stunet_volumes", "objective=spakr", "--dry-run"],
                    capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "did you mean 'spark'?" in done.stderr
    assert done.stderr.count("\n") == 1
