"""`predict` from end to end: real (random) networks of the three tasks, options, and what it refuses."""

import csv
import json

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from tifffile import imwrite

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.predict.prediction import predict

AFFINE = np.array([[0.0, 1.5, 0, 3], [-1.5, 0, 0, 5], [0, 0, 2.0, -7], [0, 0, 0, 1]])


def volume(path, shape=(18, 16, 20), seed=0, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32), affine), path)
    return path


def test_probabilities_and_uncertainty_lie_on_the_scan_and_fit_the_labels(models, tmp_path):
    source = nib.load(volume(tmp_path / "in" / "a.nii.gz"))
    written = predict(
        models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu", probabilities=True, uncertainty=True
    )
    assert [path.name for path in written] == [
        "a.nii.gz", "a_probabilities.nii.gz", "a_uncertainty.nii.gz", "predictions.csv"
    ]  # fmt: skip
    labels, probabilities, uncertainty = (nib.load(path) for path in written[:3])
    assert probabilities.shape == (*source.shape, 3)
    assert all(np.array_equal(each.affine, source.affine) for each in (labels, probabilities, uncertainty))
    chances = probabilities.get_fdata()
    assert np.allclose(chances.sum(-1), 1, atol=2e-3)
    likely = np.take_along_axis(chances, np.asarray(labels.dataobj)[..., None].astype(int), -1)[..., 0]
    assert (likely >= chances.max(-1) - 2e-3).all()
    entropy = -(chances * np.log(np.maximum(chances, 1e-9))).sum(-1) / np.log(3)
    assert np.allclose(uncertainty.get_fdata(), entropy, atol=5e-3)
    (row,) = csv.DictReader(written[3].read_text().splitlines())
    assert (row["file"], row["output"]) == ("a.nii.gz", "a.nii.gz")
    assert int(row["one voxels"]) == (np.asarray(labels.dataobj) == 1).sum()
    assert float(row["one ml"]) == pytest.approx(int(row["one voxels"]) * 1.5 * 1.5 * 2 / 1000, abs=1e-4)


def test_each_volume_of_a_series_has_an_output(models, tmp_path):
    source = nib.load(volume(tmp_path / "in" / "a.nii.gz", (16, 16, 18, 2)))
    *written, table = predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu")
    assert [path.name for path in written] == ["a_0.nii.gz", "a_1.nii.gz"]
    for path in written:
        assert nib.load(path).shape == (16, 16, 18)
        assert np.array_equal(nib.load(path).affine, source.affine)
    assert [row["file"] for row in csv.DictReader(table.read_text().splitlines())] == ["a.nii.gz#0", "a.nii.gz#1"]


def test_channels_of_a_case_are_predicted_together_and_one_may_be_missing(models, tmp_path):
    folder = models("segmentation", channels=("t1", "flair"))
    for name in ("a_t1", "a_flair", "b_0000"):
        volume(tmp_path / "in" / f"{name}.nii.gz")
    written = predict(folder, [tmp_path / "in"], tmp_path / "out", "cpu")
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz", "predictions.csv"]
    volume(tmp_path / "in" / "c_dwi.nii.gz")
    with pytest.raises(UserError, match=r"c_dwi\.nii\.gz is of none of the channels t1, flair"):
        predict(folder, [tmp_path / "in"], tmp_path / "again", "cpu")


def test_two_runs_write_the_same_bytes(models, tmp_path):
    volume(tmp_path / "in" / "deep" / "a.nii.gz")
    runs = [
        predict(models("segmentation"), [tmp_path / "in"], tmp_path / name, "cpu", "auto", True, True) for name in "xy"
    ]
    for one, other in zip(*runs, strict=True):
        assert one.relative_to(tmp_path / "x") == other.relative_to(tmp_path / "y")
        assert one.read_bytes() == other.read_bytes()


def test_other_volume_formats_become_nifti_in_their_place(models, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nrrd", "b.mha"):
        image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(16, 15, 14)).astype(np.float32))
        image.SetSpacing((1.5, 1.5, 2.0))
        image.SetOrigin((10, 20, 30))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, tmp_path / "in" / name)
    *written, _ = predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu")
    for path in written:
        back = sitk.ReadImage(path)
        assert back.GetSize() == (14, 15, 16)
        assert np.allclose(back.GetOrigin(), (10, 20, 30), atol=1e-4)
        assert np.allclose(back.GetDirection(), (0, 1, 0, -1, 0, 0, 0, 0, 1), atol=1e-6)


def test_images_become_png_and_on_demand_nifti(models, tmp_path, dicom):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (21, 19), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "in" / "b.jpg")
    imwrite(tmp_path / "in" / "c.tif", pixels.astype(np.uint16) * 200)
    model = models("segmentation", True)
    *written, _ = predict(model, [tmp_path / "in"], tmp_path / "png", "cpu", uncertainty=True)
    assert [path.name for path in written] == [f"{n}{s}.png" for n in "abc" for s in ("", "_uncertainty")]
    assert all(np.asarray(Image.open(path)).shape == (21, 19) for path in written)
    *written, _ = predict(model, [tmp_path / "in"], tmp_path / "nifti", "cpu", "nifti")
    assert [nib.load(path).shape for path in written] == [(19, 21, 1)] * 3


def test_a_dicom_image_becomes_a_segmentation(models, tmp_path, dicom):
    dataset = dicom.header(SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1", Modality="US", PatientSex="F")
    dicom.put_pixels(dataset, dicom.texture(40, 36, 1).clip(0, 255).astype(np.uint8))
    dicom.save(dataset, tmp_path / "in" / "a.dcm")
    model = models("segmentation", True, modality="us")
    seg_path, _ = predict(model, [tmp_path / "in"], tmp_path / "seg", "cpu")
    nifti, _ = predict(model, [tmp_path / "in"], tmp_path / "n", "cpu", "nifti")
    seg = hd.seg.segread(seg_path)
    found = seg.get_pixels_by_source_instance(
        [dataset.SOPInstanceUID], combine_segments=True, ignore_spatial_locations=True
    )
    assert np.array_equal(found[0], np.asarray(nib.load(nifti).dataobj)[..., 0].T)


@pytest.mark.parametrize("flat", [False, True])
def test_boxes_of_dicom_are_json_and_a_report(models, tmp_path, dicom, flat):
    positions = [(0.0, 0.0, 2.0 * n) for n in range(1 if flat else 16)]
    files = dicom.slices(tmp_path / "in" / "Doe", positions, FrameOfReferenceUID="1.2.3", PatientSex="F")
    report_path, table = predict(models("detection", flat, modality="ct"), [tmp_path / "in"], tmp_path / "out", "cpu")
    (row,) = json.loads(table.read_text())["scans"]
    assert 1 <= len(row["boxes"]) <= 3  # `boxes_per_scan`
    assert row["report"] == report_path.name
    content = hd.sr.srread(report_path).content
    groups = content.get_planar_roi_measurement_groups() if flat else content.get_volumetric_roi_measurement_groups()
    assert [float(g.get_measurements()[0].value) / 100 for g in groups] == pytest.approx(
        [b["score"] for b in row["boxes"]], abs=1e-4
    )
    assert (row["boxes"][0]["world"] is None) == flat
    assert len(files) == len(positions)


def test_a_failing_scan_does_not_lose_the_others(models, tmp_path, dicom):
    good = volume(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "corrupt.nii.gz").write_bytes(good.read_bytes()[:-900])
    broken = np.ones((18, 16, 20), np.float32)
    broken[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(broken, AFFINE), tmp_path / "in" / "nan.nii.gz")
    volume(tmp_path / "in" / "slice.nii.gz", (18, 16, 1))
    (tmp_path / "in" / "pretended.dcm").write_text("no DICOM")
    lines = []
    with pytest.raises(UserError, match="4 inputs could not be predicted"):
        predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu", tell=lines.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.nii.gz", "predictions.csv"]
    text = "\n".join(lines)
    assert len(lines) == 4
    for words in (
        r"nan.nii.gz: holds NaN",
        "slice.nii.gz: the scan is a single slice, this model takes volumes",
        "corrupt.nii.gz: not a readable",
        "pretended",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("segmentation", {"format": "tiff"}, "choose auto, dicom-seg, nifti"),
        ("segmentation", {"device": "tpu"}, "choose auto, cpu, cuda"),
        ("classification", {"probabilities": True}, "--probabilities is for segmentation"),
        ("detection", {"uncertainty": True}, "--uncertainty is for segmentation"),
        ("detection", {"format": "nifti"}, "--format is for segmentation"),
    ],
)
def test_options_that_do_not_fit(models, tmp_path, task, options, words):
    volume(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(UserError, match=words):
        predict(models(task), [tmp_path / "in"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_and_nothing_is_found_again(models, tmp_path):
    source = volume(tmp_path / "in" / "a.nii.gz")
    model = models("segmentation")
    predict(model, [source], tmp_path / "out", "cpu")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="is there already"):
        predict(model, [source], tmp_path / "out", "cpu")
    (tmp_path / "out" / "predictions.csv").unlink()
    with pytest.raises(UserError, match=r"a\.nii\.gz is there already"):
        predict(model, [source], tmp_path / "out", "cpu")
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == before[tmp_path / "out" / "a.nii.gz"]
    with pytest.raises(UserError, match="lies in the input folder"):
        predict(model, [tmp_path / "in"], tmp_path / "in" / "out", "cpu")
    volume(tmp_path / "in" / "a.nii", seed=1)
    with pytest.raises(UserError, match="two inputs would be called 'a'"):
        predict(model, [tmp_path / "in"], tmp_path / "new", "cpu")


def test_an_empty_folder_a_volume_for_an_image_model_and_dicom_seg_without_dicom(models, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="no readable scan under"):
        predict(models("segmentation"), [tmp_path / "empty"], tmp_path / "out", "cpu")
    source, lines = volume(tmp_path / "in" / "a.nii.gz"), []
    with pytest.raises(UserError):
        predict(models("segmentation", True), [source], tmp_path / "out", "cpu", tell=lines.append)
    with pytest.raises(UserError):
        predict(models("segmentation"), [source], tmp_path / "out", "cpu", "dicom-seg", tell=lines.append)
    assert "this model takes single slices" in lines[0]
    assert "needs a series" in lines[1]


def test_the_command_line(models, tmp_path, capfd):
    from scanfoundry.launch.cli.main import main

    source = volume(tmp_path / "in" / "a.nii.gz")
    words = ["predict", "--model", str(models("segmentation")), "--input", str(source), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--uncertainty", "--device", "cpu", "--format", "nifti"])
    assert stop.value.code == 0
    assert capfd.readouterr().out == f"3 files in {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "a_uncertainty.nii.gz").exists()
