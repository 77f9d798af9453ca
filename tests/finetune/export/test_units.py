"""The exports take a header at its word, as `predict` does: microns and metres."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from scanfoundry.finetune.export.bundle_runner import Prepared, SaveOutputs, ToLabelMap
from scanfoundry.finetune.export.onnx import export_onnx
from scanfoundry.finetune.export.onnx_runner import run
from scanfoundry.finetune.export.standalone import millimetres


@pytest.fixture
def micron(tmp_path):
    """A scan of 2 x 1 x 1.5 mm in a header that counts in microns, and its voxels."""
    voxels = np.random.default_rng(0).normal(100, 20, (20, 24, 18)).astype(np.float32)
    image = nib.Nifti1Image(voxels, np.diag([2000.0, 1000, 1500, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_units_by_their_number():
    assert [millimetres(n) for n in (0, 1, 2, 3, 10, np.array(11, np.uint8), 7)] == [1, 1e3, 1, 1e-3, 1, 1e-3, 1]


def test_onnx(make_run, micron, tmp_path):
    export_onnx(make_run("segmentation"), tmp_path / "onnx")
    run([micron], tmp_path / "out.nii.gz", tmp_path / "onnx")
    image = nib.load(micron)
    plain = nib.Nifti1Image(image.get_fdata(dtype=np.float32), np.diag([2.0, 1, 1.5, 1]))
    nib.save(plain, tmp_path / "mm.nii.gz")
    run([tmp_path / "mm.nii.gz"], tmp_path / "mm_out.nii.gz", tmp_path / "onnx")
    found = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(found.dataobj, nib.load(tmp_path / "mm_out.nii.gz").dataobj)
    assert (found.header.get_xyzt_units()[0], found.affine[0, 0]) == ("micron", 2000)


def test_bundle(described, micron):
    about = described("segmentation", (16, 32, 32))[2]
    loaded = LoadImage(image_only=True, ensure_channel_first=True)(micron)
    item = Prepared("image", about)({"image": loaded})
    assert item["spacing"] == pytest.approx((1.5, 1.0, 2.0))
    item["image"] = torch.zeros(3, *item["image"].shape[1:])
    SaveOutputs("image", str(micron.parent / "out"), str(micron.parent))(ToLabelMap("image", about)(item))
    np.testing.assert_allclose(np.diag(nib.load(micron.parent / "out" / "scan.nii.gz").affine)[:3], (2, 1, 1.5))
