"""`scanfoundry models export --to onnx|monai-bundle`: one command, one line for each mistake."""

import pytest
import torch
import warm

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.converting import CardTexts, check_same_options, convert

ensure_torchvision()
BACKBONE = ResEncConfig(features=(8, 16), blocks=(1, 1), strides=((2, 2, 2),))


@pytest.fixture
def finetuned(tmp_path):
    """A run folder of a classifier of slices."""
    from scanfoundry.finetune.model_file import adapter_for, save_model
    from scanfoundry.finetune.spec import Spec

    found = {"scans": 1, "shape": (1, 16, 16), "spacing": (1, 1, 1), "is_2d": True}
    spec = Spec.model_validate(
        {
            "task": {"name": "classification"}, "classes": ["a", "b"], "modality": "mr", "intensity": {},
            "backbone": BACKBONE.model_dump(), "inference": {},
            "plan": {"spacing": (1, 1, 1), "patch": (1, 16, 16), "batch": 1, "fingerprint": found},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(tmp_path / "run", [adapter_for(spec).build(build(BACKBONE))], spec)
    return tmp_path / "run"


def scanfoundry(*words):
    return warm.run([warm.SCANFOUNDRY, *words], capture_output=True, text=True)


def test_the_command_writes_a_bundle(finetuned, tmp_path):
    done = scanfoundry(
        "models", "export", finetuned, "--to", "monai-bundle", "--out", tmp_path / "b", "--licence", "mit"
    )
    assert done.returncode == 0, done.stderr
    assert "python -m monai.bundle run" in done.stdout
    assert (tmp_path / "b" / "docs" / "license.txt").read_text() == "SPDX-License-Identifier: mit\n"
    again = scanfoundry("models", "export", finetuned, "--to", "monai-bundle", "--out", tmp_path / "b")
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "exists already and nothing in it is written over" in again.stderr


def test_onnx_tells_how_far_it_is_from_torch(finetuned, tmp_path):
    told = convert(finetuned / "model.safetensors", tmp_path / "onnx", "onnx", None, CardTexts())
    assert "on noise (allowed " in told
    assert (tmp_path / "onnx" / "model.onnx").is_file()


def test_an_encoder_is_neither(tmp_path):
    save_release(tmp_path / "pre", {"encoder": build(BACKBONE).state_dict()}, ReleaseInfo(backbone=BACKBONE), [])
    for to in ("onnx", "monai-bundle"):
        with pytest.raises(UserError, match="a pre-trained encoder, which predicts nothing"):
            convert(tmp_path / "pre", tmp_path / "out", to, None, CardTexts())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "option", "fitting"),
    [
        ("onnx", "push", "release"), ("onnx", "licence", "release or monai-bundle"),
        ("monai-bundle", "without-patients", "release"), ("release", "check", "onnx"),
    ],
)  # fmt: skip
def test_an_option_without_use_is_refused(to, option, fitting):
    with pytest.raises(UserError, match=f"--{option} goes with --to {fitting}, not with {to}: leave it out"):
        check_same_options(to, {option: "x"})
    check_same_options(to, {option: None})


def test_a_missing_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no fine-tuned model"):
        convert(tmp_path / "nothing", tmp_path / "out", "onnx", None, CardTexts())
    assert not (tmp_path / "out").exists()
