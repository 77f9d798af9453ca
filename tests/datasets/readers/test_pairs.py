"""Pairs of .hdr and .img, .mgz and packed NIfTI: as nibabel reads them; what is damaged or half there says why."""

import bz2
import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.labels.pairing.names import parts_of
from scanfoundry.datasets.readers import ReadError, file_source, find_files, read

RNG = np.random.default_rng(0)
AFFINE = np.array([[0, 0, 2.0, 5], [-1.0, 0, 0, 7], [0, 1.5, 0, -3], [0, 0, 0, 1]])
PAIRS = {"nifti": nib.Nifti1Pair, "nifti2": nib.Nifti2Pair, "analyze": nib.AnalyzeImage, "spm": nib.Spm2AnalyzeImage}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(PAIRS)),
    dtype=st.sampled_from(["u1", "<i2", ">i2", "<f4"]),
    shape=st.sampled_from([(6, 5, 4), (6, 5, 1), (6, 5, 4, 3), (6, 5, 4, 1)]),
    packed=st.sampled_from(["", ".gz"]),
)
def test_a_pair_holds_what_nibabel_reads_of_it(tmp_path_factory, kind, dtype, shape, packed):
    folder = tmp_path_factory.mktemp("pair")
    voxels = RNG.integers(0, 200, shape).astype(dtype)
    nib.save(PAIRS[kind](voxels, AFFINE if "nifti" in kind else np.diag([-1.5, 2, 3, 1])), folder / "x.hdr")
    for name in ("x.hdr", "x.img"):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    expected = nib.load(folder / f"x.img{packed}")
    volumes = np.asarray(expected.dataobj).reshape(*shape[:3], -1)
    for name in (f"x.hdr{packed}", f"x.img{packed}"):
        scans = read(folder / name)
        assert [scan.part for scan in scans] == ([""] if len(scans) == 1 else ["0", "1", "2"])
        for number, scan in enumerate(scans):
            assert np.array_equal(scan.voxels[0], volumes[..., number].T)
        np.testing.assert_allclose(scans[0].spacing, expected.header.get_zooms()[2::-1], rtol=1e-6)
        if "nifti" in kind:
            np.testing.assert_allclose(scans[0].affine, expected.affine, atol=1e-5)
        else:  # which side is left, nobody says
            assert (scans[0].affine, scans[0].orientation) == (None, "")


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 3)])
def test_mgh_holds_what_nibabel_reads_of_it(tmp_path, dtype, suffix, shape):
    nib.save(nib.MGHImage(RNG.integers(0, 200, shape).astype(dtype), AFFINE), tmp_path / f"a{suffix}")
    expected = nib.load(tmp_path / f"a{suffix}")
    scans = read(tmp_path / f"a{suffix}")
    volumes = np.asarray(expected.dataobj).reshape(*shape[:3], -1)
    assert len(scans) == volumes.shape[-1]
    for number, scan in enumerate(scans):
        assert np.array_equal(scan.voxels[0], volumes[..., number].T)
        np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-5)
    assert scans[0].spacing == pytest.approx((2.0, 1.5, 1.0))


def test_an_mgh_that_says_nothing_of_its_place_has_none(tmp_path):
    nib.save(nib.MGHImage(RNG.integers(0, 200, (6, 5, 4)).astype("i2"), AFFINE), tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(content)
    (scan,) = read(tmp_path / "a.mgh")
    assert (scan.affine, scan.spacing, scan.orientation) == (None, (1.0, 1.0, 1.0), "")


def test_bzip2_is_nifti_too(tmp_path):
    voxels = RNG.integers(0, 200, (6, 5, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.bz2").write_bytes(bz2.compress(content))
    (tmp_path / "c.nii.gz").write_bytes(bz2.compress(content))  # called what it is not, and still readable
    for name in ("b.nii.bz2", "c.nii.gz"):
        (scan,) = read(tmp_path / name)
        assert np.array_equal(scan.voxels[0], voxels.T)
    assert parts_of("a/x.nii.bz2") == ("a", "x")
    zeros = nib.Nifti1Image(np.zeros((400, 400, 100), np.uint8), AFFINE)  # a label map that shrinks to next to nothing
    (tmp_path / "d.nii.bz2").write_bytes(bz2.compress(zeros.to_bytes()))
    assert (tmp_path / "d.nii.bz2").stat().st_size < 2000
    assert read(tmp_path / "d.nii.bz2")[0].voxels.max() == 0


def damaged(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


@pytest.mark.parametrize("kind", ["nifti", "analyze"])
def test_damaged_pairs_say_why(tmp_path, kind):
    def save():
        nib.save(
            PAIRS[kind](RNG.integers(0, 200, (6, 5, 4)).astype("<i2"), np.diag([2.0, 2, 2, 1])), tmp_path / "x.hdr"
        )

    def set_header(at, numbers, dtype):
        raw = np.array(numbers, dtype).tobytes()
        damaged(tmp_path / "x.hdr", lambda b: bytes(b[:at]) + raw + bytes(b[at + len(raw) :]))

    not_a_number = {"nifti": "affine holds NaN", "analyze": "2 x 2 x nan mm"}[kind]
    for change, words in {
        lambda: (tmp_path / "x.img").unlink(): "the .img of the same name is missing",
        lambda: damaged(tmp_path / "x.img", lambda b: b[:-7]): "cut short: 233 of 240 bytes",
        lambda: (tmp_path / "x.hdr").write_text("ENVI\nsamples = 6\nlines = 5\n"): "no header of NIfTI or Analyze",
        lambda: (tmp_path / "x.hdr").write_bytes(b""): "no header of NIfTI or Analyze",
        lambda: set_header(40, [3, 32000, 32000, 32000], "<i2"): "cut short",
        lambda: set_header(40, [3, 6, 5, 0], "<i2"): "empty",
        lambda: set_header(40, [5, 6, 5, 2, 1, 2], "<i2"): "5D",
        lambda: set_header(76, [1, 2e9, 2, 2], "<f4"): "0.001 to 100 mm",
        lambda: set_header(76, [1, np.nan, 2, 2], "<f4"): not_a_number,
        lambda: set_header(70, [32], "<i2"): "complex",
        lambda: set_header(70, [999], "<i2"): "a type that nobody knows",
        lambda: set_header(108, [1e9], "<f4"): "cut short: 0 of 240 bytes",
    }.items():
        save()
        if kind == "nifti":
            set_header(252, [1, 0], "<i2")
        change()
        with pytest.raises(ReadError, match=words) as caught:
            read(tmp_path / "x.hdr")
        assert str(tmp_path) not in str(caught.value)


def test_bombs_are_refused_without_being_unpacked(tmp_path):
    nib.save(nib.Nifti1Pair(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "x.hdr")
    header = bytearray((tmp_path / "x.hdr").read_bytes())
    header[40:48] = np.array([3, 2000, 2000, 2000], "<i2").tobytes()
    (tmp_path / "x.hdr").write_bytes(header)
    (tmp_path / "x.img").unlink()
    (tmp_path / "x.img.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(ReadError, match="decompression bomb"):
        read(tmp_path / "x.hdr")
    content = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()
    for name, size in (("a.nii.bz2", 2000), ("b.mgz", 0)):
        big = bytearray(content)
        if size:
            big[40:48] = np.array([3, size, size, size], "<i2").tobytes()
            packed = bz2.compress(bytes(big))
        else:
            mgh = bytearray(nib.MGHImage(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes())
            mgh[4:16] = np.array([2000] * 3, ">i4").tobytes()
            packed = gzip.compress(bytes(mgh))
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(ReadError, match="decompression bomb"):
            read(tmp_path / name)


def test_damaged_mgh_says_why(tmp_path):
    nib.save(nib.MGHImage(RNG.integers(0, 200, (6, 5, 4)).astype("i2"), AFFINE), tmp_path / "a.mgz")
    whole = (tmp_path / "a.mgz").read_bytes()
    plain = gzip.decompress(whole)
    for content in (
        b"", b"text", whole[: len(whole) // 2], whole[:-8] + bytes(8), gzip.compress(plain[:300]), plain[:280],
        plain[:4] + np.array([6, 5, -4, 1], ">i4").tobytes() + plain[20:], plain[:20] + b"\0\0\0\x63" + plain[24:],
        plain[:30] + np.full(3, np.nan, ">f4").tobytes() + plain[42:],
    ):  # fmt: skip
        (tmp_path / "a.mgz").write_bytes(content)
        with pytest.raises(ReadError) as caught:
            read(tmp_path / "a.mgz")
        assert str(tmp_path) not in str(caught.value)


def test_a_pair_is_one_source_and_what_is_not_read_is_refused_with_its_reason(tmp_path):
    nib.save(nib.Nifti1Pair(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "x.hdr")
    (tmp_path / "lone.img").write_bytes(bytes(64))
    for name in ("a.nii.zst", "b.mnc", "c.BRIK", "notes.txt"):
        (tmp_path / name).write_bytes(b"something")
    files, others = find_files([tmp_path, tmp_path / "x.img"])
    assert files == [(tmp_path, "x.hdr")]
    source = file_source(tmp_path, "x.hdr")
    assert source.files == ("x.hdr", "x.img")
    assert file_source(tmp_path, "x.img") == source
    names = [name for _, name in others if name not in source.files]
    found, none = find_dicom(tmp_path, names, 1, lambda *_: None)
    assert found == []
    said = {line.path: (line.kind, line.reason) for line in none}
    assert said["notes.txt"][0] == "skipped"
    for name, words in {
        "lone.img": "whose header",
        "a.nii.zst": "unpack it",
        "b.mnc": "MINC",
        "c.BRIK": "AFNI",
    }.items():
        assert said[name][0] == "refused"
        assert words in said[name][1]
