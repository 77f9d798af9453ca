"""The procedural cohort is what its docstring says: readable files, plausible bodies, no body twice."""

import csv

import nibabel
import numpy as np
from PIL import Image

from scanfoundry.launch.demo.synthetic_data import KIDNEY, LIVER, SHAPE, make_cohort


def test_volumes_labels_and_projections_agree(tmp_path):
    make_cohort(tmp_path, patients=3, seed=1)
    seen = set()
    for modality in ("ct", "mr"):
        for i in range(3):
            name = f"{modality}_{i:03d}.nii.gz"
            image, labels, lesions = (
                nibabel.load(tmp_path / modality / folder / name) for folder in ("imagesTr", "labelsTr", "lesions")
            )
            voxels, organs = np.asarray(image.dataobj), np.asarray(labels.dataobj)
            assert voxels.shape == organs.shape == SHAPE[::-1]
            assert np.allclose(image.affine, labels.affine)
            assert set(np.unique(organs)) == {0, LIVER, KIDNEY}
            lesion = np.asarray(lesions.dataobj) > 0
            assert lesion.any() == (i % 3 != 0)
            assert (organs[lesion] == LIVER).all()
            if modality == "ct":
                assert voxels[0, 0, 0] < -800
                assert 40 < np.median(voxels[organs == LIVER]) < 150
            seen.add(voxels.tobytes())
    assert len(seen) == 6
    with open(tmp_path / "xray" / "labels.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 6
    for row in rows:
        mask = np.asarray(Image.open(tmp_path / "xray" / "masks" / f"{row['id']}.png"))
        image = Image.open(tmp_path / "xray" / "images" / f"{row['id']}.png")
        assert image.size == mask.shape[::-1]
        assert (row["class"] == "lesion") == bool(mask.any())
