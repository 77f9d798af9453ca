"""Volumes out of slices: geometry against the headers, voxels against what was written, and every refusal."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
)

from scanfoundry.datasets.readers.dicom import group, read_volume, scan_headers
from scanfoundry.datasets.readers.dicom.conversion import convert
from scanfoundry.datasets.readers.scan import ReadError, Scan

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
]
LPS = np.array([-1.0, -1.0, 1.0])


def oblique(seed: int) -> tuple[float, ...]:
    """Two perpendicular directions that are nobody's axes."""
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return (*axes[0], *axes[1])


def line(count: int, step: float, orientation: tuple[float, ...], start=(-30.0, 12.5, 70.25)) -> list:
    normal = np.cross(orientation[:3], orientation[3:])
    return [tuple(np.asarray(start) + k * step * normal) for k in range(count)]


def at(scan: Scan, point: tuple[float, ...]) -> float:
    """The voxel at a point in LPS mm, which must be a voxel's centre."""
    x, y, z, _ = np.linalg.inv(scan.affine) @ [*(LPS * point), 1.0]
    index = np.round([z, y, x]).astype(int)
    assert np.abs(np.array([z, y, x]) - index).max() < 1e-3
    return float(scan.voxels[0][tuple(index)])


def refused(root: Path) -> str:
    (source,), _ = group(scan_headers(sorted(root.rglob("*.dcm"))), root)
    assert source.kind == "dicom-volume"
    with pytest.raises(ReadError) as error:
        list(read_volume(source))
    return str(error.value)


@pytest.mark.parametrize("seed", range(4))
def test_every_voxel_lies_where_the_headers_say(tmp_path: Path, dicom: SimpleNamespace, seed: int) -> None:
    orientation = oblique(seed)
    positions = line(9, 2.5 * (-1) ** seed, orientation)
    dicom.slices(tmp_path, positions, orientation)
    (scan,), _ = dicom.load(tmp_path)
    assert sorted(scan.voxels.shape) == [1, 9, 36, 40]
    assert scan.spacing == pytest.approx((2.5, 1.5, 1.2), abs=1e-4)
    assert scan.voxels.dtype == np.int16
    for number in (0, 4, 8):
        pixels = dicom.texture(40, 36, number)
        for row, column in ((0, 0), (0, 35), (39, 0), (11, 7)):
            point = np.asarray(positions[number]) + 1.2 * column * np.asarray(orientation[:3])
            point = point + 1.5 * row * np.asarray(orientation[3:])
            assert at(scan, point) == pixels[row, column] - 1024


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_syntax_gives_the_same_volume(tmp_path: Path, dicom: SimpleNamespace, syntax: str) -> None:
    positions = line(5, 3.0, dicom.axial)
    dicom.slices(tmp_path / "plain", positions)
    dicom.slices(tmp_path / "other", positions, syntax=syntax)
    (plain,), _ = dicom.load(tmp_path / "plain")
    (other,), _ = dicom.load(tmp_path / "other")
    assert np.array_equal(plain.voxels, other.voxels)
    assert np.array_equal(plain.affine, other.affine)


def test_agrees_with_the_converter_called_by_hand(tmp_path: Path, dicom: SimpleNamespace) -> None:
    orientation = oblique(7)
    dicom.slices(tmp_path / "in", line(6, 2.0, orientation), orientation)
    (tmp_path / "out").mkdir()
    subprocess.run([dcm2niix.bin, "-b", "n", "-f", "v", "-o", tmp_path / "out", tmp_path / "in"], check=True)
    image = nib.load(tmp_path / "out" / "v.nii")
    (scan,), _ = dicom.load(tmp_path / "in")
    assert np.array_equal(np.asanyarray(image.dataobj).T, scan.voxels[0])
    assert np.abs(image.affine - scan.affine).max() < 1e-3


def test_order_of_files_and_folders_does_not_matter(tmp_path: Path, dicom: SimpleNamespace) -> None:
    positions = line(8, 2.0, dicom.axial)
    files = dicom.slices(tmp_path / "a", positions)
    shuffled = np.random.default_rng(0).permutation(len(files))
    for place, number in enumerate(shuffled):
        target = tmp_path / "b" / f"{place % 3}" / "deep" / f"IM{place}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[number].read_bytes())
    (straight,), _ = dicom.load(tmp_path / "a")
    (mixed,), _ = dicom.load(tmp_path / "b")
    assert np.array_equal(straight.voxels, mixed.voxels)


def test_several_volumes_in_one_series(tmp_path: Path, dicom: SimpleNamespace) -> None:
    positions = line(6, 2.0, dicom.axial)
    dicom.slices(tmp_path, positions * 3, each=lambda n: {"AcquisitionNumber": n // 6 + 1})
    scans, _ = dicom.load(tmp_path)
    assert [scan.part for scan in scans] == ["1", "2", "3"]
    for number, scan in enumerate(scans):
        assert at(scan, positions[2]) == dicom.texture(40, 36, number * 6 + 2)[0, 0] - 1024


def test_several_stacks_in_one_series_are_several_sources(tmp_path: Path, dicom: SimpleNamespace) -> None:
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    dicom.slices(tmp_path / "a", line(5, 2.0, dicom.axial))
    dicom.slices(tmp_path / "b", line(7, 2.0, coronal), coronal)
    sources, _ = group(scan_headers(sorted(tmp_path.rglob("*.dcm"))), tmp_path)
    assert sorted(len(source.files) for source in sources) == [5, 7]
    assert len({source.identity for source in sources}) == 2
    scans, _ = dicom.load(tmp_path)
    assert sorted(scan.voxels.shape[1] for scan in scans) == [5, 7]


@pytest.mark.parametrize("volumes", [1, 3])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless, RLELossless])
def test_enhanced_multi_frame(tmp_path: Path, dicom: SimpleNamespace, syntax: str, volumes: int) -> None:
    positions = line(7, 2.0, dicom.axial)
    pixels = np.stack([dicom.texture(40, 36, number) for number in range(7 * volumes)])
    dicom.save(dicom.enhanced(positions * volumes, pixels), tmp_path / "IM0001", syntax)
    scans, _ = dicom.load(tmp_path)
    assert len(scans) == volumes
    for number, scan in enumerate(scans):
        assert scan.voxels.shape == (1, 7, 40, 36)
        assert scan.spacing == pytest.approx((2.0, 1.5, 1.2))
        assert at(scan, positions[5]) == pixels[number * 7 + 5, 0, 0]


def test_rounded_positions_are_no_varying_spacing(tmp_path: Path, dicom: SimpleNamespace) -> None:
    positions = [(0.0, 0.0, round(k * 0.625, 1)) for k in range(40)]
    dicom.slices(tmp_path, positions)
    (scan,), _ = dicom.load(tmp_path)
    assert scan.spacing[0] == pytest.approx(0.625, abs=2e-3)
    assert scan.affine[2, 3] + 39 * scan.affine[2, 2] == pytest.approx(positions[-1][2], abs=0.1)


def test_pet_slices_scale_each_by_its_own_slope(tmp_path: Path, dicom: SimpleNamespace) -> None:
    positions = line(5, 3.0, dicom.axial)
    dicom.slices(
        tmp_path,
        positions,
        Modality="PT",
        SOPClassUID=PositronEmissionTomographyImageStorage,
        each=lambda n: {"RescaleSlope": 0.5 + n / 4, "RescaleIntercept": 0},
    )
    (scan,), _ = dicom.load(tmp_path)
    assert scan.modality == "pt"
    for number, position in enumerate(positions):
        assert at(scan, position) == pytest.approx(dicom.texture(40, 36, number)[0, 0] * (0.5 + number / 4), rel=1e-6)


def test_padding_of_a_ct_becomes_air(tmp_path: Path, dicom: SimpleNamespace) -> None:
    def padded(number: int) -> np.ndarray:
        pixels = dicom.texture(40, 36, number)
        pixels[:4], pixels[4] = -2000, -100
        return pixels

    dicom.slices(tmp_path, line(4, 2.0, dicom.axial), pixels=padded, PixelPaddingValue=-2000)
    (scan,), _ = dicom.load(tmp_path)
    values, counts = np.unique(scan.voxels, return_counts=True)
    assert values[:2].tolist() == [-1124, -1024]  # lower than air and no padding: kept
    assert counts[:2].tolist() == [4 * 36, 4 * 4 * 36]


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        ([0, 4.22, 8.44, 9.58, 16.96, 24.34], "slice spacing varies from 1.14 to 7.38 mm"),
        ([0, 2.5, 5, 10, 12.5, 15], "1 slices missing, or a change of spacing: steps of 2.50 to 5.00 mm"),
        ([0, 2, 4, 6, 14, 16, 18], "3 slices missing"),
        ([0, 2, 2, 4, 6], "5 slices at 4 positions, 1 to 2 at each"),
        ([0, 2, 4, 6, 0, 2, 4], "7 slices at 4 positions, 1 to 2 at each"),
        ([0, 2, 4, 6.3, 8], "slice spacing varies from 1.70 to 2.30 mm"),
    ],
)
def test_what_is_no_regular_stack(tmp_path: Path, dicom: SimpleNamespace, heights: list[float], reason: str) -> None:
    dicom.slices(tmp_path, [(0.0, 0.0, float(height)) for height in heights])
    assert reason in refused(tmp_path)


def test_other_refusals(tmp_path: Path, dicom: SimpleNamespace) -> None:
    u = line(5, 2.0, dicom.axial)
    dicom.slices(tmp_path / "slope", u, each=lambda n: {"RescaleSlope": 1 + (n == 3)})
    dicom.slices(tmp_path / "spacing", u, each=lambda n: {"PixelSpacing": [1.5, 1.2 + (n == 3)]})
    dicom.slices(tmp_path / "uniform", u, pixels=lambda n: np.full((40, 36), 7, np.int16))
    dicom.slices(tmp_path / "askew", [(p[0] + 0.4 * k, p[1], p[2]) for k, p in enumerate(u)])
    dicom.slices(tmp_path / "nospacing", u, PixelSpacing=[0, 0])
    colour = np.random.default_rng(0).integers(0, 255, (40, 36, 3), np.uint8)
    dicom.slices(tmp_path / "colour", u, pixels=lambda n: colour)
    dicom.slices(tmp_path / "mr_tilt", [(p[0], p[1] + k, p[2]) for k, p in enumerate(u)], Modality="MR",
                 SOPClassUID=MRImageStorage)  # fmt: skip
    assert refused(tmp_path / "slope") == "CT slices of different rescale slope or intercept"
    assert refused(tmp_path / "spacing") == "slices of different pixel spacing"
    assert refused(tmp_path / "uniform") == "every voxel has the same value"
    assert refused(tmp_path / "askew") == "slices are stacked askew along their rows"
    assert refused(tmp_path / "nospacing") == "pixel spacing of zero or less"
    assert refused(tmp_path / "colour") == "colour slices are renderings, not a volume"
    assert refused(tmp_path / "mr_tilt") == "slices are stacked askew along their columns; only CT is straightened"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
def test_a_truncated_slice_refuses_its_volume(tmp_path: Path, dicom: SimpleNamespace, syntax: str) -> None:
    files = dicom.slices(tmp_path, line(5, 2.0, dicom.axial), syntax=syntax)
    files[3].write_bytes(files[3].read_bytes()[:-120])
    assert refused(tmp_path).startswith("truncated: ")


def test_a_rotten_compressed_slice_refuses_its_volume(tmp_path: Path, dicom: SimpleNamespace) -> None:
    files = dicom.slices(tmp_path, line(5, 2.0, dicom.axial), syntax=JPEG2000Lossless)
    content = bytearray(files[3].read_bytes())
    start = content.index(b"\xff\x4f\xff\x51")
    content[start : start + 60] = bytes(60)
    files[3].write_bytes(content)
    assert "dcm2niix makes" in refused(tmp_path)


@pytest.mark.parametrize(("tilt", "direction"), [(18, 1), (18, -1), (-12, 1), (-12, -1)])
def test_gantry_tilt_is_straightened(tmp_path: Path, dicom: SimpleNamespace, tilt: float, direction: int) -> None:
    angle = np.deg2rad(tilt)
    orientation = (1.0, 0.0, 0.0, 0.0, np.cos(angle), -np.sin(angle))
    positions = [(0.0, 0.0, direction * 2.5 * k) for k in range(8)]
    dicom.slices(tmp_path, positions, orientation, pixels=lambda n: dicom.texture(60, 20, 3))
    (scan,), _ = dicom.load(tmp_path)
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4
    assert scan.spacing == pytest.approx((2.5 * np.cos(angle), 1.5, 1.2), abs=1e-3)
    # The same picture in each slice: straightened, a point of it wanders against the gantry.
    rows = [int(np.argmax(plane[:, 5])) for plane in scan.voxels[0].astype(int)]
    world = [scan.affine[:3] @ [5, row, number, 1] for number, row in enumerate(rows)]
    assert np.ptp([point[1] for point in world]) < 1.6
    assert np.ptp(rows) >= 2


def test_reconstructed_nuclear_tomography(tmp_path: Path, dicom: SimpleNamespace) -> None:
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [-30.0, 12.5, 70.25], list(dicom.axial)
    pixels = np.stack([dicom.texture(40, 36, number) for number in range(9)])
    dataset = dicom.header(
        SOPClassUID=NuclearMedicineImageStorage, Modality="NM", ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO"],
        DetectorInformationSequence=[detector], PixelSpacing=[4.0, 4.0], SpacingBetweenSlices=4.0,
    )  # fmt: skip
    dicom.put_pixels(dataset, pixels)
    dicom.save(dataset, tmp_path / "NM1")
    (scan,), _ = dicom.load(tmp_path)
    assert (scan.modality, scan.spacing) == ("nm", (4.0, 4.0, 4.0))
    for number in (0, 6):
        assert at(scan, (-30.0, 12.5, 70.25 + 4.0 * number)) == pixels[number, 0, 0]


def test_slices_without_meta_information(tmp_path: Path, dicom: SimpleNamespace) -> None:
    positions = line(5, 3.0, dicom.axial)
    for number, file in enumerate(dicom.slices(tmp_path / "meta", positions)):
        dataset = pydicom.dcmread(file)
        dicom.save(dataset, tmp_path / "bare" / f"{number}", ImplicitVRLittleEndian, bare=True)
    (scan,), _ = dicom.load(tmp_path / "meta")
    (bare,), _ = dicom.load(tmp_path / "bare")
    assert np.array_equal(bare.voxels, scan.voxels)
    assert np.array_equal(bare.affine, scan.affine)


def test_scaled_mr_keeps_its_values(tmp_path: Path, dicom: SimpleNamespace) -> None:
    positions = line(5, 3.0, dicom.axial)
    dicom.slices(
        tmp_path, positions, Modality="MR", SOPClassUID=MRImageStorage, RescaleSlope="0.37", RescaleIntercept=3
    )
    (scan,), _ = dicom.load(tmp_path)
    assert scan.voxels.dtype == np.float32
    assert at(scan, positions[3]) == pytest.approx(dicom.texture(40, 36, 3)[0, 0] * 0.37 + 3, rel=1e-6)


def test_a_converter_that_hangs_is_ended(tmp_path: Path, dicom: SimpleNamespace, monkeypatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 30\n")
    slow.chmod(0o755)
    dicom.slices(tmp_path / "in", line(5, 3.0, dicom.axial))
    monkeypatch.setattr(dcm2niix, "bin", str(slow))
    monkeypatch.setattr(convert, "SECONDS", 0.2)
    assert refused(tmp_path / "in").startswith("dcm2niix did not end within")


def test_a_converter_that_drops_or_moves_slices_is_noticed(tmp_path: Path, dicom: SimpleNamespace, monkeypatch) -> None:
    """A wrapper spoils what dcm2niix has written; nothing in its output says so."""
    dicom.slices(tmp_path / "in", line(6, 3.0, dicom.axial))
    spoils = {
        "a = a[..., :-1]": "dcm2niix makes 5 slices of 6",
        "a = a[..., ::-1]": "dcm2niix puts other pixels into a slice than its file holds",
        "a[..., [1, 2]] = a[..., [2, 1]]": "dcm2niix puts other pixels into a slice than its file holds",
        "a[7, 7, 4] += 1": "dcm2niix puts other pixels into a slice than its file holds",
        "m[2, 3] += 5": "dcm2niix places the volume elsewhere than its headers do",
        "m[2, 2] *= 1.1": "dcm2niix places the volume elsewhere than its headers do",
    }
    real = dcm2niix.bin
    for number, (spoil, reason) in enumerate(spoils.items()):
        wrapper = tmp_path / f"wrapper{number}"
        wrapper.write_text(
            f"#!{sys.executable}\n"
            "import subprocess, sys, glob, numpy as np, nibabel as nib\n"
            f"subprocess.run([{real!r}, *sys.argv[1:]])\n"
            "(p,) = glob.glob(sys.argv[sys.argv.index('-o') + 1] + '/*.nii')\n"
            "i = nib.load(p); a, m = np.array(i.dataobj), i.affine.copy()\n"
            f"{spoil}\n"
            "nib.save(nib.Nifti1Image(a, m), p)\n"
        )
        wrapper.chmod(0o755)
        monkeypatch.setattr(dcm2niix, "bin", str(wrapper))
        assert refused(tmp_path / "in") == reason
