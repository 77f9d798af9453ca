"""NRRD and MetaImage: the same scan as nibabel's of the same volume, and nothing that is damaged."""

import contextlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.readers.itk import read_itk
from scanfoundry.datasets.readers.itk_header import data_files
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

ALL = ("a.nrrd", "a.nhdr", "a.mha", "a.mhd")
RNG = np.random.default_rng(0)


def scans(path: Path) -> list[Scan]:
    return list(read_itk(Source(path.parent, "itk", path.name, (path.name,), 0, 0)))


def oblique(angles: tuple[float, ...], spacing: tuple[float, ...], flips: tuple[bool, ...]) -> np.ndarray:
    """A rotation with flips as ITK's direction."""
    turn = sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()
    return np.array(turn).reshape(3, 3) @ np.diag([-1.0 if flip else 1.0 for flip in flips])


def image(array: np.ndarray, direction: np.ndarray | None = None, vector: bool = False) -> sitk.Image:
    made = sitk.GetImageFromArray(array, isVector=vector)
    made.SetSpacing((0.7, 1.3, 3.1)[: made.GetDimension()])
    if direction is not None:
        made.SetDirection(direction.ravel().tolist())
        made.SetOrigin((-10.5, 20.25, 31.0))
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    st.tuples(*[st.floats(0.2, 5)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.sampled_from(ALL),
    st.booleans(),
)
def test_the_same_scan_as_nibabel(tmp_path: Path, angles, spacing, flips, name: str, packed: bool) -> None:
    array = np.random.default_rng(1).integers(-999, 999, (4, 5, 6)).astype(np.int16)
    made = image(array, oblique(angles, spacing, flips))
    made.SetSpacing(spacing)
    sitk.WriteImage(made, str(tmp_path / name), useCompression=packed)
    sitk.WriteImage(made, str(tmp_path / "a.nii"))
    expected = nib.load(tmp_path / "a.nii")
    (scan,) = scans(tmp_path / name)
    assert np.array_equal(scan.voxels[0], np.asanyarray(expected.dataobj).T)
    assert scan.voxels.dtype == np.int16
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine, expected.affine, atol=2e-5)  # NIfTI keeps it in float32
    np.testing.assert_allclose(scan.spacing, expected.header.get_zooms()[::-1], rtol=1e-6)
    assert scan.orientation == "".join(reversed(nib.aff2axcodes(expected.affine)))


def test_ras_headers_and_shear(tmp_path: Path) -> None:
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 4 3 2\n"
        "space directions: (1,0,0) (0.3,2,0) (0,0.1,3)\nkinds: domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (5,6,7)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + np.arange(24, dtype="<i2").tobytes())
    (scan,) = scans(tmp_path / "a.nrrd")
    expected = np.array([[1, 0.3, 0, 5], [0, 2, 0.1, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine, expected, atol=1e-12)
    assert np.array_equal(scan.voxels.ravel(), np.arange(24))


def test_units_are_millimetres_in_the_end(tmp_path: Path) -> None:
    sitk.WriteImage(image(np.ones((2, 3, 4), np.uint8)), str(tmp_path / "a.nrrd"))
    whole = (tmp_path / "a.nrrd").read_bytes()
    for unit, scale in (("um", 1e-3), ("mm", 1), ("cm", 10)):
        field = f'space units: "{unit}" "{unit}" "{unit}"\nencoding:'.encode()
        (tmp_path / "a.nrrd").write_bytes(whole.replace(b"encoding:", field))
        (scan,) = scans(tmp_path / "a.nrrd")
        np.testing.assert_allclose(scan.spacing, np.array([3.1, 1.3, 0.7]) * scale)
    (tmp_path / "a.nrrd").write_bytes(whole.replace(b"encoding:", b'space units: "furlong" "mm" "mm"\nencoding:'))
    with pytest.raises(ReadError, match="unknown unit 'furlong'"):
        scans(tmp_path / "a.nrrd")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64, np.int64])
def test_types_and_flat_images(tmp_path: Path, name: str, dtype: type) -> None:
    array = RNG.integers(0, 99, (5, 6)).astype(dtype)
    sitk.WriteImage(image(array), str(tmp_path / name))
    (scan,) = scans(tmp_path / name)
    assert np.array_equal(scan.voxels[0, 0], array)
    assert (scan.spacing, scan.affine, scan.orientation) == ((1.0, 1.3, 0.7), None, "")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("packed", [False, True])
def test_components_and_series(tmp_path: Path, name: str, packed: bool) -> None:
    def written(made: sitk.Image) -> list[Scan]:
        sitk.WriteImage(made, str(tmp_path / name), useCompression=packed)
        return scans(tmp_path / name)

    colour = RNG.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    (scan,) = written(image(colour, vector=True))
    assert np.array_equal(scan.voxels, np.moveaxis(colour, -1, 0))
    (scan,) = written(image(colour[0], vector=True))
    assert np.array_equal(scan.voxels[:, 0], np.moveaxis(colour[0], -1, 0))
    directions = RNG.integers(0, 255, (4, 5, 6, 7)).astype(np.int16)
    many = written(image(directions, vector=True))
    assert [one.part for one in many] == list("0123456")
    assert all(np.array_equal(one.voxels[0], directions[..., i]) for i, one in enumerate(many))
    (cine,) = written(image(directions[0], vector=True))
    assert cine.frames
    assert np.array_equal(cine.voxels[0], np.moveaxis(directions[0], -1, 0))
    series = sitk.JoinSeries([image(volume, oblique((0.1, 0.2, 0.3), (), (False,) * 3)) for volume in directions])
    flat = [image(volume, oblique((0.1, 0.2, 0.3), (), (False,) * 3)) for volume in directions]
    parts = written(series)
    (single,) = written(flat[0])
    assert [one.part for one in parts] == list("0123")
    for one, volume in zip(parts, directions, strict=True):
        assert np.array_equal(one.voxels[0], volume)
        assert one.affine is not None
        assert single.affine is not None
        np.testing.assert_allclose(one.affine, single.affine, atol=1e-9)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_damage_is_not_read_as_voxels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for packed in (False, True):
        sitk.WriteImage(image(RNG.integers(0, 99, (9, 20, 30)).astype(np.int16)), str(path), useCompression=packed)
        whole = path.read_bytes()
        flips = (len(whole) // 2, len(whole) * 3 // 4, len(whole) - 2) if packed else ()
        damaged = [whole[: len(whole) * 2 // 3], whole[:-4], whole[:40], b"", b"no image"]
        damaged += [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in flips]
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(ReadError) as caught:
                scans(path)
            assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_lie(tmp_path: Path, packed: bool) -> None:
    sitk.WriteImage(image(np.ones((9, 20, 30), np.int16)), str(tmp_path / "a.mha"), useCompression=packed)
    whole = (tmp_path / "a.mha").read_bytes()
    cases = {
        "declares|bomb": (b"DimSize = 30 20 9", b"DimSize = 30000 20000 9000"),
        "of 1080000 bytes": (b"DimSize = 30 20 9", b"DimSize = 300 200 9"),
        "more than": (b"DimSize = 30 20 9", b"DimSize = 30 20 1"),
        "scales the voxels": (b"ElementType", b"ElementToIntensityFunctionSlope = 2\nElementType"),
        "outside its folder": (b"= LOCAL", b"= /etc/hostname"),
        "is missing": (b"= LOCAL", b"= gone.raw"),
        # Either ends the process inside MetaIO where it gets that far.
        "2, 3 or 4 dimensions": (b"NDims = 3", b"NDims = 83"),
        "as 3 numbers": (b"ElementSpacing = ", b"ElementSpacing = 1 1 1 1 1 1 1 1 1 1 1 1 "),
        "overlong": (b"ElementType", b"Comment = " + b"x" * 5000 + b"\nElementType"),
    }
    for reason, (old, new) in cases.items():
        if reason == "more than" and not packed:
            continue  # raw data may go on behind the voxels
        (tmp_path / "a.mha").write_bytes(whole.replace(old, new))
        with pytest.raises(ReadError, match=reason):
            scans(tmp_path / "a.mha")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["a.nrrd", "a.mha"]), st.booleans())
def test_no_damaged_header_is_worse_than_a_refusal(tmp_path: Path, data, name: str, packed: bool) -> None:
    made = image(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    sitk.WriteImage(made, str(tmp_path / name), useCompression=packed)
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b"0189 =\n\x00\xff-e"))
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(ReadError):
        assert all(scan.voxels.size for scan in scans(tmp_path / name))


def test_what_cannot_be_a_scan_says_why(tmp_path: Path) -> None:
    cases = {
        "NaN": image(np.full((2, 3, 4), np.nan, np.float32)),
        "complex": image(np.ones((2, 3, 4), np.complex64)),
    }
    for reason, made in cases.items():
        sitk.WriteImage(made, str(tmp_path / "a.nrrd"))
        with pytest.raises(ReadError, match=reason):
            scans(tmp_path / "a.nrrd")


def test_detached_voxels_are_known(tmp_path: Path) -> None:
    sitk.WriteImage(image(np.ones((2, 3, 4), np.uint8)), str(tmp_path / "a.mhd"))
    sitk.WriteImage(image(np.ones((2, 3, 4), np.uint8)), str(tmp_path / "b.mha"))
    assert data_files(tmp_path / "a.mhd") == ("a.raw",)
    assert data_files(tmp_path / "b.mha") == ()
    (tmp_path / "a.mhd").write_text("x")
    assert data_files(tmp_path / "a.mhd") == ()


@pytest.mark.parametrize("name", ALL)
def test_a_real_volume_written_both_ways(real_data: Path, tmp_path: Path, name: str) -> None:
    path = real_data / "totalsegmentator_examples" / "pulmonary_ct.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / name), useCompression=True)
    expected = nib.load(path)
    (scan,) = scans(tmp_path / name)
    assert np.array_equal(scan.voxels[0], np.asanyarray(expected.dataobj).T)
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-4)
