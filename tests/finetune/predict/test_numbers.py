"""Label maps hold the numbers that the training labels had; millilitres are the determinant of the affine."""

import csv

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scanfoundry.datasets.readers import read
from scanfoundry.finetune.cases.label_values import LabelValues
from scanfoundry.finetune.cases.volumes import voxel_mm3

GAPS = LabelValues(read={2: 1, 1000: 2}, written=[2, 1000])


def test_pictures_of_16_bits(above, tmp_path):
    image = np.zeros((12, 10), np.uint16)
    image[2:5, 2:5], image[6:9, 6:9] = 300, 900
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    first, _ = above(200, [tmp_path / "in"], tmp_path / "out", patch=(1, 12, 10), values=GAPS)
    made = np.asarray(Image.open(first))
    assert made.dtype == np.uint16
    assert np.unique(made).tolist() == [0, 2, 1000]
    assert ((made == 2) == (image == 300)).all()
    first, _ = above(200, [tmp_path / "in"], tmp_path / "nii", patch=(1, 12, 10), values=GAPS, format="nifti")
    assert np.unique(np.asarray(nib.load(first).dataobj)).tolist() == [0, 2, 1000]
    huge = LabelValues(read={2: 1, 100_000: 2}, written=[2, 100_000])
    first, _ = above(200, [tmp_path / "in"], tmp_path / "huge", patch=(1, 12, 10), values=huge)
    assert first.name == "a.nii.gz"
    assert np.unique(np.asarray(nib.load(first).dataobj)).tolist() == [0, 2, 100_000]


def test_segments_are_counted_from_1_and_say_their_number(above, dicom, tmp_path):
    positions = [(0.0, 0.0, 2.0 * z) for z in range(4)]
    dicom.slices(tmp_path / "in", positions, FrameOfReferenceUID="1.2.826.0.1.77.3", PatientSex="F")
    seg_path, _ = above(100, [tmp_path / "in"], tmp_path / "out", (2.0, 1.5, 1.2), (4, 16, 16), values=GAPS)
    seg = hd.seg.segread(seg_path)
    assert [int(each.SegmentNumber) for each in seg.SegmentSequence] == [1, 2]
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["liver", "left lesion"]
    assert [each.SegmentDescription.split()[1] for each in seg.SegmentSequence] == ["2", "1000"]
    first, _ = above(
        100, [tmp_path / "in"], tmp_path / "nii", (2.0, 1.5, 1.2), (4, 16, 16), values=GAPS, format="nifti"
    )
    assert set(np.unique(np.asarray(nib.load(first).dataobj))) <= {0, 2, 1000}


@pytest.mark.parametrize("name", ["straight", "turned", "sheared", "mirrored"])
def test_millilitres_are_the_determinant_of_the_affine(above, tmp_path, name):
    linear = {
        "straight": np.diag([1.5, 0.8, 3.0]),
        "turned": np.array([[0.9, -0.7, 0.0], [1.2, 0.4, 0.0], [0.0, 0.0, 3.0]]) @ np.diag([1.0, 0.8, 1.0]),
        "sheared": np.array([[1.5, 0.9, 0.4], [0.0, 0.8, 1.1], [0.0, 0.0, 3.0]]),
        "mirrored": np.array([[-1.5, 0.9, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 3.0]]),
    }[name]
    affine = np.eye(4)
    affine[:3, :3] = linear
    voxels = np.zeros((10, 12, 8), np.int16)
    voxels[2:7, 3:9, 2:6] = 300
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "in" / "a.nii.gz")
    (scan,) = read(tmp_path / "in" / "a.nii.gz")
    exact = abs(np.linalg.det(linear))
    assert voxel_mm3(scan) == pytest.approx(exact)
    assert (abs(np.prod(scan.spacing) / exact - 1) > 0.005) == (name != "straight")
    _, table = above(200, [tmp_path / "in"], tmp_path / "out", scan.spacing, (8, 12, 10))
    (row,) = csv.DictReader(table.open())
    assert int(row["liver voxels"]) == 120
    assert float(row["liver ml"]) == pytest.approx(120 * exact / 1000, rel=1e-5)


def test_volumes_of_microscopes_are_no_zeros(above, tmp_path):
    voxels = np.zeros((10, 12, 8), np.int16)
    voxels[2:4, 3:9, 2:6] = 300
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.diag([0.01, 0.01, 0.01, 1])), tmp_path / "in" / "a.nii.gz")
    _, table = above(200, [tmp_path / "in"], tmp_path / "out", (0.01, 0.01, 0.01), (8, 12, 10))
    (row,) = csv.DictReader(table.open())
    assert float(row["liver ml"]) == pytest.approx(48e-9)
