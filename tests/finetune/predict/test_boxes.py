"""Boxes in the world and as structured reports, against plain arithmetic and pydicom."""

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.readers import Scan, scans_of
from scanfoundry.finetune.boxes.world import as_json, world_box
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.predict.dicom_sr import write_report
from scanfoundry.finetune.predict.maker import Maker

MAKER = Maker("0123456789abcdef", "detection")


@given(
    numbers=st.lists(st.floats(-3, 3), min_size=9, max_size=9).filter(
        lambda n: abs(np.linalg.det(np.reshape(n, (3, 3)))) > 0.1
    ),
    low=st.tuples(*[st.integers(0, 9)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_corners_are_the_outer_corners_of_the_voxels(numbers, low, size):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.reshape(numbers, (3, 3)), (7, -4, 2)
    box = np.array([*low, *(a + b for a, b in zip(low, size, strict=True))], float)
    world = world_box(box, affine)
    first = (affine @ [box[2] - 0.5, box[1] - 0.5, box[0] - 0.5, 1])[:3]  # x y z of the first voxel's outer corner
    last = (affine @ [box[5] - 0.5, box[4] - 0.5, box[3] - 0.5, 1])[:3]
    lps = np.array([-1, -1, 1])
    assert np.allclose(world["corners"][0], first * lps, atol=1e-3)
    assert np.allclose(world["corners"][7], last * lps, atol=1e-3)
    assert np.allclose(world["centre"], (first + last) / 2 * lps, atol=1e-3)
    steps = nib.affines.voxel_sizes(affine)
    assert np.allclose(world["size"], steps * size[::-1], atol=1e-3)


def test_an_image_has_no_world():
    found = Boxes(np.array([[0, 1, 2, 1, 3, 4.5]]), np.array([1]), np.array([0.7]))
    assert as_json(found, Scan(np.zeros((1, 1, 9, 9)), (1, 1, 1)), ["a", "b"]) == [
        {"label": "b", "score": 0.7, "box": [0, 1, 2, 1, 3, 4.5], "world": None}
    ]


def made(folder):
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    (source,) = find_dicom(folder, files, 1, lambda *_: None)[0]
    (scan,) = scans_of(source)
    return source, scan


@pytest.mark.parametrize("name", ["series_tcia_pgbm001/t1post", "series_siemens_mr_sag_HFDL"])
def test_a_report_on_a_volume(real_data, tmp_path, name):
    source, scan = made(real_data / "dicom_mixed" / name)
    box = np.array([4.0, 20, 30, 7, 60.5, 90])
    found = Boxes(np.stack([box, box + 1]), np.array([0, 0]), np.array([0.9, 0.25]))
    write_report(tmp_path / "a.dcm", found, scan, source, ["nodule"], MAKER)
    report = hd.sr.srread(tmp_path / "a.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [float(g.get_measurements()[0].value) for g in groups] == [90.0, 25.0]
    assert [g.finding_type.meaning for g in groups] == ["nodule", "nodule"]
    headers = {str(h.SOPInstanceUID): h for h in map(pydicom.dcmread, source.paths)}
    regions = groups[0].roi
    assert len(regions) == 3
    # Through each slice's own header to the patient: just what the box's corners in the world span.
    world = np.concatenate([_patient(region, headers) for region in regions])
    corners = np.array(world_box(box, scan.affine)["corners"])
    normal = scan.affine[:3, 2] * (-1, -1, 1)
    half = normal / 2
    swept = np.concatenate([world - half, world + half])
    for direction in (scan.affine[:3, :3] * np.array([-1, -1, 1])[:, None]).T:
        assert (swept @ direction).min() == pytest.approx((corners @ direction).min(), abs=0.05 * direction @ direction)
        assert (swept @ direction).max() == pytest.approx((corners @ direction).max(), abs=0.05 * direction @ direction)
    assert report.PatientID == next(iter(headers.values())).PatientID


def _patient(region, headers):
    header = headers[region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID]
    points = np.reshape(region.GraphicData, (-1, 2)) - 0.5  # (0, 0) is the corner of the first pixel
    across, down = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
    rows, columns = map(float, header.PixelSpacing)
    origin = np.array(header.ImagePositionPatient, float)
    return origin + points[:, :1] * columns * across + points[:, 1:] * rows * down


def test_a_report_on_one_image(dicom, tmp_path):
    dataset = dicom.header(PatientSex="F", FrameOfReferenceUID="1.2.3", PixelSpacing=[1.5, 1.2])
    dicom.put_pixels(dataset, dicom.texture(40, 36, 1))
    dicom.save(dataset, tmp_path / "in" / "a.dcm")
    source, scan = made(tmp_path / "in")
    found = Boxes(np.array([[0, 5, 7.5, 1, 12, 40]]), np.array([0]), np.array([0.5]))
    write_report(tmp_path / "a.dcm", found, scan, source, ["mass"], MAKER)
    (group,) = hd.sr.srread(tmp_path / "a.dcm").content.get_planar_roi_measurement_groups()
    assert np.allclose(group.roi.value, [[7.5, 5], [36, 5], [36, 12], [7.5, 12], [7.5, 5]])


def test_without_an_instance_there_is_nothing_to_refer_to(dicom, tmp_path):
    source, scan = made(_nameless(dicom, tmp_path))
    with pytest.raises(UserError, match="SOPInstanceUID"):
        write_report(
            tmp_path / "a.dcm", Boxes(np.zeros((0, 6)), np.zeros(0, int), np.zeros(0)), scan, source, ["m"], MAKER
        )


def _nameless(dicom, tmp_path):
    dataset = dicom.header()
    dicom.put_pixels(dataset, dicom.texture(40, 36, 1))
    path = dicom.save(dataset, tmp_path / "in" / "a.dcm")
    stored = pydicom.dcmread(path)
    stored.SOPInstanceUID = stored.file_meta.MediaStorageSOPInstanceUID = ""
    stored.save_as(path, enforce_file_format=False)
    return tmp_path / "in"
