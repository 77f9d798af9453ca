"""Tiny labelled data sets on disk, made of noise and bright blobs."""

import csv
import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scanfoundry.backbones.torchvision_cpu import ensure_torchvision

ensure_torchvision()  # before anything imports monai
torch.set_num_threads(1)


def blob(shape, centre, radius):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return (((grid - np.array(centre)) / np.array(radius)) ** 2).sum(-1) <= 1


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """24 NIfTI volumes (x, y, z) = (18, 16, 20) with an oblique affine, one blob of each of two labels."""
    root = tmp_path_factory.mktemp("volumes")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    affine = np.array([[0.0, 1.5, 0, 3], [-1.5, 0, 0, 5], [0, 0, 2.0, -7], [0, 0, 0, 1]])
    for i in range(24):
        labels = np.zeros((18, 16, 20), np.uint8)
        labels[blob(labels.shape, rng.uniform(5, 9, 3), rng.uniform(3, 4, 3))] = 1
        labels[blob(labels.shape, rng.uniform(10, 13, 3), rng.uniform(3, 4, 3))] = 2
        image = rng.normal(100, 10, labels.shape) + 60 * labels
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / "images" / f"Doe_{i:02d}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), root / "labels" / f"Doe_{i:02d}.nii.gz")
    return root


@pytest.fixture(scope="session")
def slices(tmp_path_factory):
    """40 grey PNGs of 40 x 48: half with one bright square ('lesion', in its mask), half without ('none')."""
    root = tmp_path_factory.mktemp("slices")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    rng = np.random.default_rng(1)
    rows = []
    for i in range(40):
        image = rng.normal(90, 12, (40, 48))
        mask = np.zeros((40, 48), np.uint8)
        if i % 2:
            y, x, size = rng.integers(2, 24), rng.integers(2, 30), rng.integers(8, 13)
            mask[y : y + size, x : x + size] = 255
            image += 90 * (mask > 0)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"s{i:02d}.png")
        Image.fromarray(mask).convert("1").save(root / "masks" / f"s{i:02d}.png")
        rows.append({"id": f"s{i:02d}", "class": "lesion" if i % 2 else "none"})
    with (root / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "class"])
        writer.writeheader()
        writer.writerows(rows)
    return root


SMALL = {"name": "resenc", "features": [8, 16, 32], "blocks": [1, 1, 1], "strides": [[2, 2, 2], [2, 2, 2]]}


@pytest.fixture
def study(tmp_path):
    """Make a FinetuneConfig of a small study over one of the data sets."""
    from scanfoundry.finetune.config.study import FinetuneConfig

    def make(task, data, /, modality="mr", **others):
        labels = data / {"segmentation": "labels", "classification": "labels.csv", "detection": "masks"}[task]
        content = {
            "run_dir": tmp_path / "run",
            "task": {"name": task},
            "data": {"images": data / "images", "labels": labels, "modality": modality},
            "backbone": SMALL,
            "shots": [2],
            "split": {"test_fraction": 0.3},
            "schedule": {"steps": 3, "warmup_steps": 1},
            "plan": {"batch": 2},
            "bootstrap": 20,
            "worst_cases": 2,
            "device": "cpu",
        }
        return FinetuneConfig.model_validate({**content, **others})

    return make


@pytest.fixture
def real(real_data) -> Path:
    """Real hippocampus volumes."""
    return real_data / "msd_task04_hippocampus"


# Synthetic DICOM is made by the readers' fixture; test modules are no package, so by its path.
_spec = importlib.util.spec_from_file_location(
    "readers_conftest", Path(__file__).parents[1] / "datasets" / "readers" / "conftest.py"
)
_loaded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_loaded)
dicom = _loaded.dicom
