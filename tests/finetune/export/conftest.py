"""Models with random weights, of any task, size and backbone, and an environment without scanfoundry."""

import os
import subprocess
import sys
from functools import cache

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfoundry.backbones import primus, vit
from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.finetune.boxes.anchors import plan_strides
from scanfoundry.finetune.heads.pyramid import available_strides
from scanfoundry.finetune.model_file import adapter_for, save_model
from scanfoundry.finetune.spec import Spec

BACKBONES = {
    "stunet": STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3),
    "mednext": MedNeXtConfig(size="S"),
    "resenc": ResEncConfig(features=(8, 16, 32), blocks=(1, 1, 1), strides=((2, 2, 2),) * 2),
    "vit": ViTConfig(size="Ti", patch_2d=(16, 16), patch_3d=(8, 16, 16), registers=2),
    "primus": PrimusConfig(size="S", patch=(8, 16, 16), grid=(2, 2, 2)),
}
SHALLOW = ((vit, "Ti", (192, 2, 3)), (primus, "S", (396, 2, 6)))  # width, depth, heads
SMALL = BACKBONES["resenc"]
FLAT, DEEP = (1, 32, 32), (16, 32, 32)


def _spec(
    task="segmentation", patch=DEEP, backbone=SMALL, modality="mr", spacing=(1.0, 1.0, 1.0), mirror=False, grey="mean"
):
    """Two classes; the widths of a scan may be mirrored."""
    size = 2 if patch[0] == 1 else 3
    with torch.device("meta"):
        strides = plan_strides(np.full((1, size), 4.0), available_strides(build(backbone), patch[0] == 1), patch)
    found = {"scans": 1, "shape": patch, "spacing": spacing, "is_2d": patch[0] == 1}
    return Spec.model_validate(
        {
            "task": {"name": task},
            "classes": {"detection": ["lesion"], "regression": []}.get(task, ["left", "right"]),
            "standard": {"mean": 50.0, "std": 12.5} if task == "regression" else None,
            "modality": modality,
            "grey": grey,
            "intensity": {},
            "backbone": backbone.model_dump(),
            "plan": {"spacing": spacing, "patch": patch, "batch": 2, "fingerprint": found},
            "inference": {"mirror": mirror},
            "flip_axes": [2],
            "anchors": [[[s * 2**level] * size for s in (3, 4, 5)] for level in range(len(strides))],
            "detection": {"whole_scan": True, "reason": "test", "strides": strides, "boxes": 1, "anchor_iou": 1.0},
        }
    )


def _model(spec, seed=0):
    """Random weights, the head's too, so that every class is met."""
    torch.manual_seed(seed)
    adapter = adapter_for(spec)
    model = adapter.build(build(spec.backbone))
    if spec.task.name in ("classification", "regression"):
        torch.nn.init.normal_(model.linear.weight)
    if spec.task.name == "detection":  # untrained, no score would pass the threshold
        heads = model.detector.network
        torch.nn.init.normal_(heads.classification_head.cls_logits.weight, std=0.1)
        torch.nn.init.constant_(heads.classification_head.cls_logits.bias, -1.0)
        torch.nn.init.normal_(heads.regression_head.bbox_reg.weight, std=0.03)
    return adapter, model.eval()


@pytest.fixture(autouse=True)
def shallow_transformers(monkeypatch):
    """Two blocks in place of twelve: exporters treat all alike, and take seconds for each."""
    for module, size, shape in SHALLOW:
        monkeypatch.setitem(module.WIDTH_DEPTH_HEADS, size, shape)


@pytest.fixture(scope="session")
def backbones():
    """Small ones by name."""
    return BACKBONES


@pytest.fixture(scope="session")
def spec_of():
    """`spec_of(task, patch, ...)`: a Spec."""
    return _spec


@pytest.fixture(scope="session")
def model_of():
    """`model_of(spec)`: the task and a model."""
    return _model


@pytest.fixture(scope="session")
def described():
    """`described(task, patch, ...)`: the task, a model, and its description."""
    from scanfoundry.finetune.export.describe import describe
    from scanfoundry.finetune.export.network import traceable

    @cache
    def make(*args, **kwargs):
        spec = _spec(*args, **kwargs)
        adapter, model = _model(spec)
        return adapter, model, describe(adapter, model, traceable(model, spec), "x")

    return make


@pytest.fixture
def make_run(tmp_path):
    """`make_run(task, patch, ...)`: a run folder."""

    def make(*args, **kwargs):
        spec = _spec(*args, **kwargs)
        save_model(tmp_path / "run", [_model(spec)[1]], spec)
        return tmp_path / "run"

    return make


@pytest.fixture
def scan(tmp_path):
    """A NIfTI volume (x, y, z) = (34, 40, 18) of blurred noise with an oblique affine, larger than the patch."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(3)
    image = 100 + 300 * gaussian_filter(rng.normal(size=(34, 40, 18)), 2)
    affine = np.array([[0.0, 1.0, 0, 3], [-1.0, 0, 0, 5], [0, 0, 1.05, -7], [0, 0, 0, 1]])
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), tmp_path / "scans" / "volume.nii.gz")
    return tmp_path / "scans" / "volume.nii.gz"


@pytest.fixture
def stranger():
    """`stranger(arguments, folder)` runs Python where nobody has heard of scanfoundry; gives what it printed."""
    # -S leaves out the files that make an editable installation known; packages are then found by their folders.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1"}

    def run(arguments, folder):
        known = "import importlib.util as u, sys; sys.exit(u.find_spec('scanfoundry') is not None)"
        subprocess.run([sys.executable, "-S", "-c", known], cwd=folder, env=environment, check=True)
        done = subprocess.run(
            [sys.executable, "-S", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run
