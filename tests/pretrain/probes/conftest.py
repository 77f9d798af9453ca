"""Small labelled shards: blobs that are bright or dark by class, volumes with masks of two parts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory, fixed_key: Callable[[str], Path]) -> dict[str, Path]:
    """`images`: 40 images of 20 patients with classes; `volumes`: 16 volumes of 16 patients with masks and classes.

    Hashed with the same key.
    """
    import nibabel
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    from scanfoundry.datasets.shards.build import BuildOptions, build

    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for name in ("images", "volumes", "masks"):
        (root / name).mkdir()
    rows = ["id,kind,side"]
    for i in range(40):
        fine = i % 2
        image = ndimage.gaussian_filter(rng.normal(size=(24, 28)), 1 if fine else 4)
        grey = 255 * (image - image.min()) / np.ptp(image)
        name = f"p{i // 2:02d}_{i}"
        Image.fromarray(grey.astype(np.uint8)).save(root / "images" / f"{name}.png")
        rows.append(f"{name},{'fine' if fine else 'coarse'},{'left' if i % 3 else 'right'}")
    (root / "images.csv").write_text("\n".join(rows) + "\n")
    rows = ["id,kind"]
    for i in range(16):
        volume = rng.normal(0, 10, size=(18, 20, 11)) + 100
        mask = np.zeros(volume.shape, np.uint8)
        z, y, x = rng.integers(2, 9), rng.integers(2, 9), rng.integers(1, 4)
        mask[z : z + 7, y : y + 4, x : x + 6], mask[z : z + 7, y + 4 : y + 8, x : x + 6] = 3, 7
        volume[mask == 3] += 60
        volume[mask == 7] -= 60
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), root / "volumes" / f"v{i:02d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), root / "masks" / f"v{i:02d}.nii.gz")
        rows.append(f"v{i:02d},same")
    (root / "volumes.csv").write_text("\n".join(rows) + "\n")
    key = root / "site.key"
    shutil.copy(fixed_key("probes"), key)  # which patients are tested on depends on it
    images = BuildOptions(
        modality="us",
        workers=1,
        key_file=key,
        labels=[root / "images.csv"],
        label_columns=["kind", "side"],
        patient_regex=r"(p\d\d)_",
    )
    build([root / "images"], root / "shards" / "images", images, None)
    volumes = BuildOptions(
        modality="mr",
        workers=1,
        key_file=key,
        labels=[root / "volumes.csv"],
        label_columns=["kind"],
        masks=[root / "masks"],
    )
    build([root / "volumes"], root / "shards" / "volumes", volumes, None)
    return {name: root / "shards" / name for name in ("images", "volumes")}
