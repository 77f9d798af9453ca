import nibabel as nib
import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.crop import as_channels
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.sources import scan_file
from scanfoundry.finetune.cases.volumes import prepared, read_labels, read_one, resize, resize_labels, target_shape


def save(path, array, affine):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def saved(path, array, affine):
    return scan_file(save(path, array, affine))


def test_labels_must_lie_on_the_image(tmp_path):
    image = read_one(save(tmp_path / "i.nii.gz", np.ones((4, 5, 6), np.float32), np.eye(4)))
    good = np.zeros((4, 5, 6), np.uint8)
    good[1, 2, 3] = 2
    assert read_labels(saved(tmp_path / "g.nii.gz", good, np.eye(4)), image)[3, 2, 1] == 2
    with pytest.raises(UserError, match=r"s\.nii\.gz: mask: shape"):
        read_labels(saved(tmp_path / "s.nii.gz", good[:, :, :5], np.eye(4)), image)
    moved = np.eye(4)
    moved[0, 3] = 0.5
    with pytest.raises(UserError, match=r"a\.nii\.gz: mask: its affine"):
        read_labels(saved(tmp_path / "a.nii.gz", good, moved), image)
    flipped = np.diag([-1.0, 1, 1, 1])
    with pytest.raises(UserError, match="affine"):
        read_labels(saved(tmp_path / "f.nii.gz", good, flipped), image)
    with pytest.raises(UserError, match="whole numbers"):
        read_labels(saved(tmp_path / "h.nii.gz", good.astype(np.float32) / 4, np.eye(4)), image)


def test_a_mask_of_0_and_255_is_0_and_1(slices):
    image = read_one(slices / "images" / "s01.png")
    assert set(np.unique(read_labels(scan_file(slices / "masks" / "s01.png"), image))) == {0, 1}


def test_corrupt_file_is_named(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.nii\.gz"):
        read_one(tmp_path / "x.nii.gz")


def test_spacing_within_a_tenth_is_left_alone():
    assert target_shape((10, 20, 30), (1, 1.05, 1), (1, 1, 1)) == (10, 20, 30)
    assert target_shape((10, 20, 30), (3, 1, 0.5), (1, 1, 1)) == (30, 20, 15)


def test_resizing_keeps_world_positions():
    z = np.linspace(0, 1, 12)[:, None, None] * np.ones((12, 8, 8))
    again = resize(resize(z[None].astype(np.float32), (24, 8, 8)), (12, 8, 8))[0]
    assert again[1:-1] == pytest.approx(z[1:-1], abs=0.01)
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[2:4, 1:5, 3:] = 3
    assert np.array_equal(resize_labels(resize_labels(labels, (12, 18, 6)), (6, 6, 6)), labels)


def test_channels():
    rgb = Scan(np.arange(3 * 16, dtype=np.uint8).reshape(3, 1, 4, 4), (1, 1, 1))
    assert prepared(rgb, 1, "us", IntensityConfig(), "luminance")[0].shape == (1, 1, 4, 4)
    grey = Scan(rgb.voxels[:1], (1, 1, 1))
    assert prepared(grey, 3, "us", IntensityConfig(), "luminance")[0].shape == (3, 1, 4, 4)
    with pytest.raises(UserError, match="3 channels"):
        prepared(rgb, 2, "us", IntensityConfig(), "luminance")


def test_colours_become_the_grey_of_pre_training_or_that_of_earlier_versions():
    voxels = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    rgb = Scan(voxels, (1, 1, 1))
    for grey, values in ("luminance", as_channels(voxels, 1)), ("mean", voxels.astype(np.float32).mean(0)[None]):
        expected = prepared(Scan(values, (1, 1, 1)), 1, "us", IntensityConfig(), "luminance")
        found = prepared(rgb, 1, "us", IntensityConfig(), grey)
        assert np.array_equal(found[0], expected[0])
        assert found[1] == expected[1]
