"""One folder with small synthetic scans, and the README's commands run in it, for the pages to begin with."""

import os
from collections.abc import Callable
from pathlib import Path

import doc_blocks
import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

PATIENTS = 12
RUN = {
    "run_dir": "runs/my_run", "seed": 0, "steps": 2, "checkpoint_every": 2, "threads": 1,
    "backbone": yaml.safe_load(doc_blocks.RESENC), "objective": {"name": "spark", "block_3d": [4, 4, 4]},
    "data": {"sources": [{"name": "mr", "path": "shards/mr"}], "crop_3d": [16, 16, 16], "batch_3d": 4, "workers": 0},
    "optimiser": {"lr": 1e-3, "warmup_steps": 1},
}  # fmt: skip
STUDY = {
    "run_dir": "runs/my_study", "task": {"name": "segmentation", "classes": ["anterior", "posterior"]},
    "data": {"images": "scans/imagesTr", "labels": "scans/labelsTr", "modality": "mr"},
    "split": {"test_fraction": 0.25}, "plan": {"batch": 2}, "device": "cpu",
}  # fmt: skip


def make_scans(folder: Path) -> None:
    """`scans/{imagesTr,labelsTr,new}` and `export`: volumes of 20 x 24 x 16 voxels, a bright block of each class."""
    rng = np.random.default_rng(0)
    for name in ("scans/imagesTr", "scans/labelsTr", "scans/new", "export"):
        (folder / name).mkdir(parents=True)
    for i in range(PATIENTS):
        labels = np.zeros((20, 24, 16), np.uint8)
        x, y = rng.integers(3, 7, 2)
        labels[x : x + 10, y : y + 6, 4:12], labels[x : x + 10, y + 6 : y + 12, 4:12] = 1, 2
        image = nibabel.Nifti1Image(rng.normal(100, 10, labels.shape).astype(np.float32) + 50 * labels, np.eye(4))
        nibabel.save(image, folder / "scans" / "imagesTr" / f"scan_{i}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / "scans" / "labelsTr" / f"scan_{i}.nii.gz")
    for target in ("scans/new/scan.nii.gz", "export/other.nii.gz"):
        nibabel.save(image, folder / target)


def make_pictures(folder: Path) -> None:
    """`pictures`: 20 grey images `img_*.png` of which half have a bright square, their masks, and `classes.csv`."""
    rng = np.random.default_rng(1)
    (folder / "pictures").mkdir()
    rows = ["id,class"]
    for i in range(20):
        mask = np.zeros((40, 48), np.uint8)
        if i % 2:
            y, x = rng.integers(2, 24, 2)
            mask[y : y + 10, x : x + 10] = 255
        image = rng.normal(90, 12, mask.shape) + 90 * (mask > 0)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "pictures" / f"img_{i:02d}.png")
        Image.fromarray(mask).save(folder / "pictures" / f"mask_{i:02d}.png")
        rows.append(f"img_{i:02d},{'lesion' if i % 2 else 'none'}")
    (folder / "classes.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def readme_folder(tmp_path_factory: pytest.TempPathFactory, write_key: Callable[[Path, str], Path]) -> Path:
    """The folder in which every block of the README that is run has been run."""
    folder = tmp_path_factory.mktemp("readme")
    write_key(folder / "site.key", "docs")  # the same patients are tested on each time
    make_scans(folder)
    make_pictures(folder)
    for name, content in (("my_run", RUN), ("my_study", STUDY)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    before = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCANFOUNDRY_KEY_FILE", str(folder / "site.key"))
        patch.setenv("SCANFOUNDRY_MODELS", str(folder / "models"))
        patch.setenv("WANDB_MODE", "disabled")
        os.chdir(folder)
        try:
            for block in doc_blocks.blocks(ROOT / "README.md"):
                if block.language == "" and not block.reason:
                    doc_blocks.run_shell(block.text)
        finally:
            os.chdir(before)
    return folder
