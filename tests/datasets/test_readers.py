import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers import ReadError, find_files, find_scans, plain_suffix, read, suffix_of
from scanfoundry.datasets.readers.nifti import compact


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    image = nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine, dtype=array.dtype)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, ">i2", np.int64])
def test_nifti_is_the_transpose_voxel_for_voxel(tmp_path: Path, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(dtype)
    (scan,) = read(save(tmp_path / "a.nii.gz", array))
    assert scan.voxels.shape == (1, 6, 5, 4)
    assert np.array_equal(scan.voxels[0], array.T)
    assert scan.voxels.dtype.isnative
    assert scan.spacing == (3.0, 2.0, 1.0)
    assert scan.orientation == "SAR"


def test_orientation_follows_the_affine(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 2.0, 0], [-1.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])
    (scan,) = read(save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.uint8), affine))
    assert scan.orientation == "RSP"  # z grows to the right, y to superior, x to posterior
    assert scan.spacing == (2.0, 1.5, 1.0)


def test_scaled_integers_come_back_small_and_exact(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "a.nii")
    loaded = nib.load(tmp_path / "a.nii")
    (scan,) = read(tmp_path / "a.nii")
    assert loaded.get_fdata().dtype == np.float64
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels[0], loaded.get_fdata().T)


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        arrays(np.float64, 5, elements=st.floats(allow_nan=False, allow_infinity=False)),
        arrays(np.float64, 5, elements=st.integers(-70000, 70000).map(float)),
        arrays(np.int64, 5),
        arrays(np.uint64, 5),
        arrays(">f4", 5, elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    )
)
def test_compaction_never_changes_a_value(array: np.ndarray) -> None:
    assert np.array_equal(compact(array), array)
    assert compact(array).dtype.itemsize <= array.dtype.itemsize


def test_slices_and_series(tmp_path: Path) -> None:
    (flat,) = read(save(tmp_path / "flat.nii", np.ones((4, 5), np.uint8)))
    assert flat.voxels.shape == (1, 1, 5, 4)
    series = np.random.default_rng(0).integers(0, 9, (3, 4, 5, 7)).astype(np.uint8)
    scans = read(save(tmp_path / "series.nii.gz", series))
    assert len(scans) == 7
    assert all(np.array_equal(scan.voxels[0], series[..., i].T) for i, scan in enumerate(scans))


def test_what_cannot_be_a_scan_says_why(tmp_path: Path) -> None:
    cases = {
        "5D array": np.ones((2, 2, 2, 2, 2), np.uint8),
        "RGB": np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]),
        "complex": np.ones((2, 2, 2), np.complex64),
        "NaN": np.full((2, 2, 2), np.nan, np.float32),
        "empty": np.zeros((2, 0, 2), np.uint8),
    }
    for reason, array in cases.items():
        with pytest.raises(ReadError, match=reason):
            read(save(tmp_path / "a.nii", array))


def test_damaged_nifti(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
    whole = path.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:3000] + bytes([whole[3000] ^ 255]) + whole[3001:],
        "text": b"not a scan",
        "empty": b"",
        "short": gzip.compress(gzip.decompress(whole)[:1000]),
    }
    for content in damaged.values():
        path.write_bytes(content)
        with pytest.raises(ReadError) as caught:
            read(path)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_equal_pillow(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    for shape in [(7, 9), (7, 9, 3)]:
        path = tmp_path / f"a{suffix}"
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(path)
        (scan,) = read(path)
        expected = np.asarray(Image.open(path)).reshape(7, 9, -1)
        assert scan.voxels.shape == (expected.shape[2], 1, 7, 9)
        assert np.array_equal(scan.voxels[:, 0], np.moveaxis(expected, -1, 0))


def test_png_modes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    deep = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    Image.fromarray(deep).save(path)
    assert read(path)[0].voxels.dtype == np.uint16
    assert np.array_equal(read(path)[0].voxels[0, 0], deep)
    bits = np.eye(5, dtype=bool)
    Image.fromarray(bits).save(path)
    assert np.array_equal(read(path)[0].voxels[0, 0], bits)
    colours = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    palette = Image.fromarray(colours).quantize(16)
    palette.save(path)
    assert np.array_equal(read(path)[0].voxels[:, 0], np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0))
    opaque = np.dstack([colours, np.full((6, 8), 255, np.uint8)])
    Image.fromarray(opaque).save(path)
    assert np.array_equal(read(path)[0].voxels[:, 0], np.moveaxis(colours, -1, 0))
    opaque[0, 0, 3] = 7
    Image.fromarray(opaque).save(path)
    with pytest.raises(ReadError, match="transparent"):
        read(path)


def test_jpeg_stands_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 16)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    stored = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert np.array_equal(read(tmp_path / "a.jpg")[0].voxels[0, 0], np.rot90(stored, -1))


def test_damaged_images_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (whole[:1000], b"text", b""):
        path.write_bytes(content)
        with pytest.raises(ReadError):
            read(path)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(ReadError, match="decompression bomb"):
        read(path)


def test_files_are_found_and_others_counted(tmp_path: Path) -> None:
    for name in ["b/x.NII.GZ", "a.png", "b/notes.txt", ".hidden/a.png", "b/.a.png", "1.2.840.30000022"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    files, others = find_files([tmp_path, tmp_path / "a.png"])
    assert files == [(tmp_path, "a.png"), (tmp_path, "b/x.NII.GZ")]
    assert others == [(tmp_path, "1.2.840.30000022"), (tmp_path, "b/notes.txt")]
    assert [plain_suffix(relative) for _, relative in others] == ["(other)", ".txt"]
    assert find_scans([tmp_path]) == files
    assert suffix_of("a.v2.nii.gz") == ".nii.gz"
    with pytest.raises(UserError, match="does not exist"):
        find_files([tmp_path / "missing"])
