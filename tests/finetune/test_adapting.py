"""A checkpoint in a fine-tuning of a larger kernel, or of volumes where it has seen images: used whole, and told."""

import json

import pytest
import torch

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.parts import split
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.run_study import prepare, run

SMALL = MedNeXtConfig(size="S")


@pytest.fixture
def flat(tmp_path):
    """Encoder and decoder of kernel 3 that images alone have trained."""
    network = build(SMALL).decoder(1)
    parts = split(network, network.state_dict())
    del parts["head"]
    save_release(tmp_path / "flat", parts, ReleaseInfo(backbone=SMALL, crop_2d=(64, 64)), [])
    return tmp_path / "flat", network


def config(volumes, tmp_path, **changes):
    content = {
        "run_dir": tmp_path / "run",
        "task": {"name": "segmentation", "classes": ["one", "two"]},
        "data": {"images": volumes / "images", "labels": volumes / "labels", "modality": "mr"},
        "plan": {"patch": [16, 16, 32], "spacing": [2.0, 1.5, 1.5], "batch": 2},
        "shots": [2],
        "compare_scratch": False,
        "schedule": {"steps": 1, "lr": 1e-12, "warmup_steps": 0},
        "split": {"test_fraction": 0.1},
        "device": "cpu",
    }
    return FinetuneConfig.model_validate(content | changes)


def test_kernel_and_dimension_are_adapted_whole_and_told(flat, volumes, tmp_path, caplog):
    path, network = flat
    given = config(
        volumes, tmp_path, checkpoint=path, backbone={"name": "mednext", "size": "S", "kernel": 5},
        adapt={"kernel": "centre", "dimension": "centre"},
    )  # fmt: skip
    result = run(given)
    how = "kernels of 3 enlarged to 5 by centre; kernels inflated from images to volumes by centre"
    assert f"note: checkpoint adapted: {how}" in caplog.text
    told = json.loads(result.results.read_text())["setup"]["transferred"]
    encoder, decoder = (len(split(network, network.state_dict())[part]) for part in ("encoder", "decoder"))
    assert told == [
        f"encoder adapted: all its {encoder} weights; {how}", f"decoder adapted: all its {decoder} weights; {how}",
    ]  # fmt: skip
    assert how in result.report.read_text()
    adapter, (model,) = load_model(result.run_dir)
    assert adapter.spec.backbone == MedNeXtConfig(size="S", kernel=5)
    x = torch.randn(1, 1, 1, 48, 48)
    with torch.no_grad():
        ours, theirs = (each.decode(each.encode(x)) for each in (model.net, network.eval()))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-3)


def test_what_is_not_asked_for_is_not_done(flat, volumes, tmp_path, caplog):
    path, _ = flat
    study = prepare(config(volumes, tmp_path, checkpoint=path))
    assert "was trained on images alone" in " ".join(caplog.text.split())
    assert study.starts[""].adapted == ""
    assert study.spec.backbone == SMALL
    before = study.starts[""].release.parts["encoder"]["enc_block_0.0.conv1.weight"]
    turned = prepare(config(volumes, tmp_path, checkpoint=path, adapt={"dimension": "average"}), notes=False)
    after = turned.starts[""].release.parts["encoder"]["enc_block_0.0.conv1.weight"]
    torch.testing.assert_close(after, (before[:, :, 1:2] / 3).expand_as(before))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"name": "mednext", "size": "S", "kernel": 5}}, "leave out 'backbone', or set adapt.kernel"),
        ({"adapt": {"kernel": "upkern"}}, "adapt.kernel needs the backbone with the larger kernel"),
        ({"checkpoint": None, "backbone": {"name": "mednext"}, "adapt": {"dimension": "centre"}}, "for a checkpoint"),
    ],
)  # fmt: skip
def test_settings_that_do_not_belong_together_are_refused(flat, volumes, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(volumes, tmp_path, **({"checkpoint": flat[0]} | changes))


def test_only_the_kernel_may_differ(flat, volumes, tmp_path):
    larger = {"name": "mednext", "size": "B", "kernel": 5}
    with pytest.raises(UserError, match=r"has backbone.size S, the run's is B: only the kernel may differ"):
        prepare(config(volumes, tmp_path, checkpoint=flat[0], backbone=larger, adapt={"kernel": "upkern"}))
