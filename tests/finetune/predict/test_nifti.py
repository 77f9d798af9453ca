"""NIfTI outputs: the geometry of the source to the bit, and nothing else of it."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.readers import Scan, read
from scanfoundry.finetune.predict.nifti import write_fractions, write_labels

FORMS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z")


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(5, 4, 3), (5, 4), (5, 4, 3, 1), (5, 4, 1)]),
    qcode=st.integers(0, 4),
    scode=st.integers(0, 4),
    angle=st.floats(-3, 3),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
)
def test_the_source_s_geometry_to_the_bit(tmp_path_factory, shape, qcode, scode, angle, kind):
    folder = tmp_path_factory.mktemp("forms")
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (1.5, 0.7, 3.0), (5, -8, 13)
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    source = kind(voxels, affine)
    source.set_qform(affine, qcode)
    source.set_sform(np.diag([1.5, 0.7, 3.0, 1.0]), scode)
    source.header["descrip"] = b"Doe Jane"
    source.header["db_name" if kind is nib.Nifti1Image else "intent_name"] = b"K-4711"
    nib.save(source, folder / "in.nii.gz")
    (scan,) = read(folder / "in.nii.gz")
    labels = (scan.voxels[0] % 3).astype(np.uint8)
    write_labels(folder / "out.nii.gz", labels, scan, folder / "in.nii.gz")
    found = nib.load(folder / "out.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj), voxels % 3)
    assert found.get_data_dtype() == np.uint8
    original = nib.load(folder / "in.nii.gz")
    assert np.array_equal(found.affine, original.affine)
    assert np.array_equal(found.header["pixdim"][:4], original.header["pixdim"][:4])
    for name in FORMS:
        assert np.array_equal(found.header[name], original.header[name])
    assert b"Doe" not in found.to_bytes()
    assert b"4711" not in found.to_bytes()


def test_fractions_keep_sixteen_bits_and_two_writes_are_the_same_bytes(tmp_path):
    affine = np.array([[0, 0, 2.0, 1], [1.5, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]])
    scan = Scan(np.zeros((1, 3, 4, 5)), (2.0, 1.0, 1.5), affine, "RSA")
    values = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float16)
    for name in "ab":
        write_fractions(tmp_path / f"{name}.nii.gz", values, scan, None)
    found = nib.load(tmp_path / "a.nii.gz")
    assert found.shape == (5, 4, 3, 2)
    assert np.allclose(found.get_fdata().T, values.astype(float), atol=1e-5)
    assert np.allclose(found.affine, affine)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_an_image_has_a_size_but_no_place(tmp_path):
    write_labels(tmp_path / "a.nii.gz", np.ones((2, 4, 5), np.uint8), Scan(np.zeros((1, 2, 4, 5)), (1, 0.5, 0.2)), None)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 0)
    assert header.get_zooms() == pytest.approx((0.2, 0.5, 1))
