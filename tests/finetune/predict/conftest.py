"""A segmentation whose answer is known: voxels above a number, through the whole of `predict`."""

import pytest
import torch

from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.cases.appearance import Profile
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.spec import Spec

WINDOW = 4000.0
# Trained on anything: the geometry of files of every kind is what counts here.
ANY = Profile(
    scans=2, modalities=["ct", "mr", "pt", "us", "xr"], ct=0.5, low=(-1e9, 1e9), high=(1e-9, 1e9), levels=1, flat=1.0,
    coloured=0.5,
)  # fmt: skip


class Above(torch.nn.Module):
    """Label 1 above `value`, label 2 above twice that, of CT voxels as `normalise` scales them."""

    def __init__(self, value):
        super().__init__()
        self.value = value / WINDOW

    def forward(self, x):
        x = x[:, :1]
        return torch.cat((torch.zeros_like(x), x - self.value, 2 * x - 3 * self.value), 1)


def spec_of(task, spacing, patch, **others):
    found = Fingerprint(scans=1, shape=patch, spacing=spacing, is_2d=patch[0] == 1)
    values = {
        "task": task, "classes": ["liver", "left lesion"], "modality": "ct", "backbone": STUNetConfig(size="S"),
        "intensity": IntensityConfig(ct_window=(-WINDOW, WINDOW)), "inference": InferenceConfig(),
        "profiles": [ANY], "plan": Plan(spacing=spacing, patch=patch, batch=2, fingerprint=found),
    }  # fmt: skip
    return Spec(**(values | others))


@pytest.fixture
def above(monkeypatch, tmp_path):
    """Run `predict` with the network that thresholds in the place of one that was trained."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")

    def run(value, inputs, out, spacing=(1.0, 1.0, 1.0), patch=(8, 12, 10), values=None, **options):
        adapter = adapter_for(spec_of(SegmentationTask(), spacing, patch, values=values))
        monkeypatch.setattr(
            "scanfoundry.finetune.predict.prediction.load_model", lambda path: (adapter, [Above(value)])
        )
        return predict(tmp_path / "model", inputs, out, "cpu", **options)

    return run
