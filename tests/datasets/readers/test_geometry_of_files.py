"""Sizes and places that headers state: units, transforms that contradict each other, sizes that are none."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from tifffile import imwrite

from scanfoundry.datasets.readers import ReadError, read

VOXELS = np.random.default_rng(0).integers(0, 999, (6, 5, 4)).astype(np.int16)
MM = {"unknown": 1.0, "meter": 1e3, "mm": 1.0, "micron": 1e-3}
SIGNED = st.sampled_from([-1.0, 1.0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    unit=st.sampled_from(list(MM)),
    time=st.sampled_from(["unknown", "sec", "msec", "hz"]),
    size=st.tuples(*[st.floats(0.3, 6)] * 3),
    signs=st.tuples(SIGNED, SIGNED, SIGNED),
    codes=st.sampled_from([(0, 0), (1, 0), (0, 1), (1, 1), (2, 4)]),
    suffix=st.sampled_from([".nii", ".nii.gz", ".nii.bz2"]),
)
def test_lengths_are_millimetres_whatever_the_header_counts_in(
    tmp_path_factory, kind, unit, time, size, signs, codes, suffix
):
    path = tmp_path_factory.getbasetemp() / f"unit{suffix}"
    affine = np.diag([*(np.array(size) * signs / MM[unit]), 1.0])
    affine[:3, 3] = np.array([11.0, -7.0, 3.0]) / MM[unit]
    image = kind(VOXELS, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header["pixdim"][1:4] = np.array(size) / MM[unit]
    image.header.set_xyzt_units(unit, time)
    nib.save(image, path)
    (scan,) = read(path)
    np.testing.assert_allclose(scan.spacing, size[::-1], rtol=1e-5)
    assert np.array_equal(scan.voxels[0], VOXELS.T)
    if any(codes):
        np.testing.assert_allclose(scan.affine[:3, 3], (11, -7, 3), rtol=1e-4)
        np.testing.assert_allclose(np.diag(scan.affine)[:3], np.array(size) * signs, rtol=1e-5)


@pytest.mark.parametrize(
    ("unit", "size", "words"),
    [
        ("meter", 1.0, "voxels of 2000 x 1000 x 1000 mm .* counts in metres; 0.001 to 100 mm are read"),
        ("micron", 0.5, "voxels of 0.001 x 0.0005 x 0.0005 mm .* counts in microns"),
        ("mm", 1000.0, "voxels of 2000 x 1000 x 1000 mm .* counts in millimetres"),
        ("unknown", 200.0, r"voxels of 400 x 200 x 200 mm \(D x H x W\); 0.001"),
    ],
)
def test_sizes_that_are_none_are_refused_with_the_unit(tmp_path, unit, size, words):
    image = nib.Nifti1Image(VOXELS, np.diag([size, size, 2 * size, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(ReadError, match=words):
        read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("size", "good"), [(0.001, True), (100.0, True), (0.00099, False), (101.0, False)])
def test_the_bounds_are_the_same_for_every_reader(tmp_path, size, good):
    nib.save(nib.Nifti1Image(VOXELS, np.diag([size, size, size, 1])), tmp_path / "a.nii")
    nib.save(nib.Nifti1Pair(VOXELS, np.diag([size, size, size, 1])), tmp_path / "b.hdr")
    nib.save(nib.MGHImage(VOXELS, np.diag([size, size, size, 1])), tmp_path / "c.mgz")
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((size,) * 3)
    for name in ("d.nrrd", "e.mha"):
        sitk.WriteImage(image, tmp_path / name)
    imwrite(
        tmp_path / "f.tif", VOXELS.astype(np.uint16), imagej=True, resolution=(1 / size, 1 / size),
        metadata={"axes": "ZYX", "unit": "mm", "spacing": size},
    )  # fmt: skip
    for path in sorted(p for p in tmp_path.iterdir() if p.suffix != ".img"):
        if good:
            np.testing.assert_allclose(read(path)[0].spacing, size, rtol=1e-4)
        else:
            with pytest.raises(ReadError, match=r"0\.001 to 100 mm are read"):
                read(path)


def test_a_nrrd_in_an_odd_unit_and_dicom_sizes_that_are_none(tmp_path, dicom):
    image = sitk.GetImageFromArray(VOXELS)
    sitk.WriteImage(image, tmp_path / "a.nrrd")
    header = (tmp_path / "a.nrrd").read_bytes().replace(b"kinds:", b'space units: "m" "m" "m"\nkinds:', 1)
    (tmp_path / "a.nrrd").write_bytes(header)
    with pytest.raises(ReadError, match="voxels of 1000 x 1000 x 1000 mm"):
        read(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("sizes", "qcode", "scode", "good"),
    [
        ((1.5, 1.5, 3.0), 1, 1, True),
        ((1.5, 1.5, 3.0), 0, 2, True),
        ((1.0, 1.0, 1.0), 0, 2, True),  # nobody has filled them in
        ((1.0, 1.0, 1.0), 1, 2, False),
        ((1.5, 1.5, 2.5), 1, 1, False),  # of one space
        ((1.4, 1.4, 2.5), 1, 4, True),  # registered to a template, stretched
        ((15.0, 15.0, 30.0), 1, 4, False),
        ((0.0015, 0.0015, 0.003), 0, 1, False),
    ],
)
def test_transforms_that_contradict_each_other_are_refused(tmp_path, sizes, qcode, scode, good):
    image = nib.Nifti1Image(VOXELS, np.diag([1.5, 1.5, 3.0, 1]))
    image.set_qform(np.diag([*sizes, 1.0]), qcode)
    image.set_sform(np.diag([1.5, 1.5, 3.0, 1]), scode)
    image.header["pixdim"][1:4] = sizes
    nib.save(image, tmp_path / "a.nii")
    if good:
        assert read(tmp_path / "a.nii")[0].spacing == (3.0, 1.5, 1.5)
    else:
        with pytest.raises(ReadError, match=r"its sform makes voxels of 1\.5 x 1\.5 x 3 mm .*, its pixdim of"):
            read(tmp_path / "a.nii")


@pytest.mark.parametrize("sizes", [(0.0, 1.0, 1.0), (np.nan, 1.0, 1.0), (np.inf, 1.0, 1.0), (1.0, 1.0, 1e-30)])
@pytest.mark.parametrize("qcode", [0, 1])
def test_pixdim_that_is_no_size(tmp_path, sizes, qcode):
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[80:92] = np.array(sizes, "<f4").tobytes()
    content[252:256] = np.array([qcode, 0], "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ReadError):
        read(tmp_path / "a.nii")


def test_negative_pixdim_counts_as_positive_as_nibabel_has_it(tmp_path):
    image = nib.Nifti1Image(VOXELS, None)
    image.header["pixdim"][1:4] = (2, 3, 4)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[80:92] = np.array([-2, 3, -4], "<f4").tobytes()
    content[252:256] = bytes(4)
    (tmp_path / "a.nii").write_bytes(content)
    (scan,) = read(tmp_path / "a.nii")
    np.testing.assert_allclose(scan.affine, nib.load(tmp_path / "a.nii").affine)
    assert scan.spacing == (4.0, 3.0, 2.0)
