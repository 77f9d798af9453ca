"""DICOM-SEG of real series, read back by pydicom and highdicom, against dcm2niix's own conversion."""

import subprocess
from collections import defaultdict

import dcm2niix
import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.readers import scans_of
from scanfoundry.datasets.readers.geometry import LPS_TO_RAS

SERIES = {  # threshold, shape, spacing (D, H, W)
    "series_siemens_ct_j2k/dicom": (40.25, (20, 512, 512), (2.0, 0.9765625, 0.9765625)),
    "series_siemens_mr_sag_HFDL": (60.25, (35, 256, 256), (4.8, 1.015625, 1.015625)),
    "series_tcia_pgbm001/t1post": (300.25, (25, 320, 260), (6.5, 0.6875, 0.6875)),
    "series_hippocrop/Study2": (60.25, (35, 48, 36), (1.0, 1.0, 1.0)),
}


def values_of(path):
    """Pixels times slope plus intercept."""
    dataset = pydicom.dcmread(path)
    return dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))


def series(folder):
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    (source,) = find_dicom(folder, files, 1, lambda *_: None)[0]
    return source


@pytest.mark.parametrize("name", SERIES)
def test_a_real_series(above, real_data, tmp_path, name):
    folder, (value, shape, spacing) = real_data / "dicom_mixed" / name, SERIES[name]
    source = series(folder)
    patch = tuple(-(-n // 2) for n in shape)
    seg_path, _ = above(value, [folder], tmp_path / "seg", spacing, patch)
    nifti_path, _ = above(value, [folder], tmp_path / "nifti", spacing, patch, format="nifti")
    assert seg_path.suffix == ".dcm"
    seg = hd.seg.segread(seg_path)
    headers = {str(h.file_meta.MediaStorageSOPInstanceUID): h for h in map(pydicom.dcmread, source.paths)}
    _check_words(pydicom.dcmread(seg_path), headers)
    _check_frames(seg, headers, source, value)
    _check_world(seg, nifti_path, folder, tmp_path)


def _check_words(seg, headers):
    """Patient, study and references are the source's; every segment says what it is and who made it."""
    first = next(iter(headers.values()))
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg.get(keyword) == first.get(keyword)
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == set(headers)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["liver", "left lesion"]
    liver, lesion = (item.SegmentedPropertyTypeCodeSequence[0] for item in seg.SegmentSequence)
    assert (liver.CodeValue, liver.CodingSchemeDesignator) == ("10200004", "SCT")
    assert (lesion.CodeValue, lesion.CodingSchemeDesignator) == ("52988006", "SCT")
    for item in seg.SegmentSequence:
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "scanfoundry"


def _check_frames(seg, headers, source, value):
    """Each frame lies on the slice it refers to, and holds what thresholding that slice's own pixels gives."""
    pixels = {str(pydicom.dcmread(p, stop_before_pixels=True).file_meta.MediaStorageSOPInstanceUID): values_of(p)
              for p in source.paths}  # fmt: skip
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    seen = defaultdict(dict)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        sop = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(position, headers[sop].ImagePositionPatient, atol=1e-3)
        seen[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber][sop] = frame
    for number, low, high in ((1, value, 2 * value), (2, 2 * value, np.inf)):
        for sop, values in pixels.items():
            expected = (values > low) & (values <= high)
            found = seen[number].get(sop, np.zeros_like(expected))
            assert np.array_equal(found.astype(bool), expected)
    assert seen[1]


def _check_world(seg, nifti_path, folder, tmp_path):
    """Voxel by voxel the same label as the NIfTI prediction at that place; which lies where dcm2niix puts the scan."""
    (tmp_path / "reference").mkdir()
    command = [
        dcm2niix.bin,
        "-g",
        "i",
        "-b",
        "n",
        "-z",
        "n",
        "-x",
        "i",
        "-f",
        "ref_%s",
        "-o",
        str(tmp_path / "reference"),
        str(folder),
    ]
    subprocess.run(command, check=True, capture_output=True)
    ours = nib.load(nifti_path)
    references = [nib.load(path) for path in (tmp_path / "reference").glob("ref_*.nii")]
    assert any(r.shape == ours.shape and np.allclose(r.affine, ours.affine, atol=2e-3) for r in references)
    volume = seg.get_volume(combine_segments=True, allow_missing_positions=True)
    indices = np.argwhere(volume.array > 0)
    places = LPS_TO_RAS @ volume.affine @ np.c_[indices, np.ones(len(indices))].T
    voxels = np.linalg.inv(ours.affine) @ places
    assert np.abs(voxels - voxels.round()).max() < 0.05
    labels = np.asarray(ours.dataobj)
    assert np.array_equal(labels[tuple(voxels[:3].round().astype(int))], volume.array[volume.array > 0])
    assert (labels > 0).sum() == len(indices)


def test_series_of_several_patients_mixed_in_one_folder(above, real_data, tmp_path):
    root, mixed = real_data / "dicom_mixed" / "series_hippocrop", tmp_path / "in"
    mixed.mkdir()
    for number, path in enumerate(sorted(root.rglob("*.dcm"))):
        (mixed / f"IM{number * 7 % 107:03d}").symlink_to(path)
    (mixed / "notes.txt").write_text("no scan")
    *written, table = above(60.25, [mixed], tmp_path / "out", patch=(16, 24, 18))
    found = {pydicom.dcmread(path).StudyInstanceUID: len(_referred(path)) for path in written}
    assert len(found) == 3
    assert sorted(found.values()) == [32, 35, 40]
    assert len(table.read_text().splitlines()) == 4


def _referred(path):
    return pydicom.dcmread(path).ReferencedSeriesSequence[0].ReferencedInstanceSequence


def _mosaic(real_data, dicom, tmp_path):
    return real_data / "dicom_mixed" / "series_siemens_mr_mosaic" / "dicom"


def _two_volumes(real_data, dicom, tmp_path):
    positions = [(0.0, 0.0, 2.0 * (n % 4)) for n in range(8)]
    dicom.slices(tmp_path / "in", positions, each=lambda n: {"AcquisitionNumber": n // 4 + 1})
    return tmp_path / "in"


@pytest.mark.parametrize("make", [_mosaic, _two_volumes])
def test_what_no_segmentation_can_refer_to_is_refused_or_becomes_nifti(above, dicom, real_data, tmp_path, make):
    folder, lines = make(real_data, dicom, tmp_path), []
    scans = list(scans_of(series(folder)))
    assert len(scans) == 2
    options = {"spacing": scans[0].spacing, "patch": (4, 32, 32), "tell": lines.append}
    with pytest.raises(UserError, match="could not be predicted"):
        above(50, [folder], tmp_path / "seg", format="dicom-seg", **options)
    assert len(lines) == 1
    assert "take --format nifti" in lines[0]
    written = above(50, [folder], tmp_path / "auto", **options)
    assert len(written) == len(scans) + 1
    assert all(nib.load(path).shape == scans[0].voxels.T.shape[:3] for path in written[:-1])
    assert len(lines) == 1 + len(scans)


def test_an_enhanced_object(above, dicom, tmp_path):
    positions = [(3.0, -4.0, 2.0 * z) for z in (3, 0, 2, 1)]
    pixels = np.stack([dicom.texture(40, 36, n) for n in range(4)])
    dataset = dicom.enhanced(positions, pixels)
    dataset.FrameOfReferenceUID = "1.2.826.0.1.77.3"
    dicom.save(dataset, tmp_path / "in" / "one.dcm")
    seg_path, _ = above(600, [tmp_path / "in"], tmp_path / "out", (2.0, 1.5, 1.2), (4, 16, 16), format="dicom-seg")
    seg = hd.seg.segread(seg_path)
    frames = seg.get_pixels_by_source_frame(dataset.SOPInstanceUID, [1, 2, 3, 4], combine_segments=True)
    assert np.array_equal(frames, (pixels > 600).astype(int) + (pixels > 1200))


def test_an_empty_segmentation_is_one_still(above, dicom, tmp_path):
    positions = [(0.0, 0.0, 2.0 * z) for z in range(4)]
    dicom.slices(tmp_path / "in", positions, FrameOfReferenceUID="1.2.826.0.1.77.3", PatientSex="F")
    seg_path, table = above(3000, [tmp_path / "in"], tmp_path / "out", (2.0, 1.5, 1.2), (4, 16, 16))
    seg = hd.seg.segread(seg_path)
    assert not seg.pixel_array.any()
    assert seg.number_of_segments == 2
    row = dict(zip(*[line.split(",") for line in table.read_text().splitlines()], strict=True))
    assert row["liver ml"] == "0.0"


def test_no_name_of_ours_says_who_it_is(above, dicom, tmp_path, capsys):
    positions = [(0.0, 0.0, 2.0 * z) for z in range(4)]
    folder = tmp_path / "in" / "Doe_Jane_K-4711"
    dicom.slices(folder, positions, FrameOfReferenceUID="1.2.826.0.1.77.3", PatientSex="F")
    written = above(100, [tmp_path / "in"], tmp_path / "out", (2.0, 1.5, 1.2), (4, 16, 16), uncertainty=True)
    assert len(written) == 3
    for path in written:
        assert "Doe" not in path.name
        assert "4711" not in path.name
        assert "1.2.826" not in path.name
    maps = next(path for path in written if "uncertainty" in path.name)
    content = nib.load(maps).to_bytes()
    assert b"Doe" not in content
    assert b"4711" not in content
    assert capsys.readouterr() == ("", "")


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3), backwards=st.booleans(), value=st.integers(100, 700))
def test_any_orientation_and_direction(above, dicom, tmp_path_factory, angles, backwards, value):
    """Every frame of the object holds what its own slice's pixels say, however the stack lies and is numbered."""
    folder = tmp_path_factory.mktemp("oblique")
    turn = Rotation.from_euler("xyz", angles).as_matrix()
    step = turn[2] * (-2.0 if backwards else 2.0)
    positions = [tuple(np.array([30.0, -50.0, 10.0]) + step * n) for n in range(5)]
    orientation = tuple(np.round(turn[:2].ravel(), 9))
    files = dicom.slices(folder / "in", positions, orientation, FrameOfReferenceUID="1.2.826.0.1.77.3", PatientSex="F")
    seg_path, _ = above(value + 0.25, [folder / "in"], folder / "out", (2.0, 1.5, 1.2), (4, 16, 16), format="dicom-seg")
    sops = [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    found = hd.seg.segread(seg_path).get_pixels_by_source_instance(
        sops, combine_segments=True, ignore_spatial_locations=False, assert_missing_frames_are_empty=True
    )
    pixels = np.stack([values_of(path) for path in files])
    assert np.array_equal(found, (pixels > value + 0.25).astype(int) + (pixels > 2 * value + 0.5))


def test_a_tilted_gantry(above, dicom, tmp_path):
    """dcm2niix straightens the stack between the voxels; each frame gets the nearest labels back."""
    angle = np.deg2rad(18)
    orientation = (1.0, 0.0, 0.0, 0.0, np.cos(angle), -np.sin(angle))
    files = dicom.slices(
        tmp_path / "in", [(0.0, 0.0, 2.5 * n) for n in range(8)], orientation,
        pixels=lambda n: dicom.texture(60, 20, 3), RescaleIntercept=0, PatientSex="F",
        FrameOfReferenceUID="1.2.826.0.1.77.3",
    )  # fmt: skip
    spacing = (2.5 * np.cos(angle), 1.5, 1.2)
    seg_path, _ = above(500, [tmp_path / "in"], tmp_path / "out", spacing, (4, 16, 16), format="dicom-seg")
    sops = [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    found = hd.seg.segread(seg_path).get_pixels_by_source_instance(sops, combine_segments=True)
    pixels = np.stack([values_of(path) for path in files])
    expected = (pixels > 500).astype(int) + (pixels > 1000)
    assert 0.1 < (expected > 0).mean() < 0.9
    agreement = [(found == np.roll(expected, shift, axis=1)).mean() for shift in (-1, 0, 1)]
    assert agreement[1] > 0.97
    assert agreement[1] > max(agreement[0], agreement[2])
