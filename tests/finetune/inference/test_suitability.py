"""A model is not applied to another modality, unless it is forced; and the scale of an MR is never held against it."""

import csv

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scanfoundry.datasets.readers import Scan, read
from scanfoundry.finetune.cases.appearance import look_of, profile_of
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.predict.prediction import SomeFailed, predict
from scanfoundry.finetune.predict.suitability import why_unlike
from scanfoundry.finetune.spec import Spec

RNG = np.random.default_rng(0)


def body(seed=0, shape=(20, 24, 24)):
    """A smooth random body, 0 to 1, in air, which is 0."""
    rng = np.random.default_rng(seed)
    inside = ndimage.gaussian_filter(rng.normal(size=shape), 3) > -0.02
    return np.where(inside, 0.5 + ndimage.gaussian_filter(rng.normal(size=shape), 1), 0) + 0.01 * rng.random(shape)


def ct(seed=0):
    return scan((body(seed) * 300 - 100 - 900 * (body(seed) < 0.05)).astype(np.int16))


def mr(seed=0, scale=800.0):
    return scan((body(seed) * scale).astype(np.float32))


def scan(voxels, modality=""):
    return Scan(voxels[None] if voxels.ndim == 3 else voxels, (1.0, 1.0, 1.0), modality=modality)


def spec(modality, training=(), channels=("image",), modalities=()):
    profiles = [profile_of([look_of(each) for each in training])] * len(channels) if training else []
    found = Fingerprint(scans=1, shape=(8, 8, 8), spacing=(1, 1, 1), is_2d=False)
    return Spec(
        task=SegmentationTask(), classes=["liver"], modality=modality, modalities=list(modalities),
        channels=list(channels), profiles=profiles, backbone={"name": "stunet", "size": "S"}, intensity={},
        inference=InferenceConfig(), plan=Plan(spacing=(1, 1, 1), patch=(8, 8, 8), batch=1, fingerprint=found),
    )  # fmt: skip


CT_MODELS = {"with its training": spec("ct", [ct(1), ct(2), ct(3)]), "of an older version": spec("ct")}
MR_MODELS = {"with its training": spec("mr", [mr(1), mr(2), mr(3, 120)]), "of an older version": spec("mr")}


@pytest.mark.parametrize("model", CT_MODELS)
def test_a_model_of_ct_takes_ct_alone(model):
    taken = CT_MODELS[model]
    assert why_unlike([ct(9)], taken) == ""
    for strange in (
        mr(9),
        mr(9, 1e6),
        mr(9, 200),
        scan((body(9) * 255).astype(np.uint8)),
        scan(ct(9).voxels[0] + 1024),
    ):
        assert "no CT in Hounsfield units" in why_unlike([strange], taken)
    assert why_unlike([scan(mr(9).voxels[0], "mr")], taken) == "its header says MR, the model was trained on CT"
    assert why_unlike([scan(mr(9).voxels[0], "ct")], taken) == ""  # what is stated is believed


def test_standardised_mr_is_no_ct_where_all_training_scans_hold_air():
    standardised = scan((100 * (body(9) - body(9).mean()) / body(9).std()).astype(np.int16))
    assert "all that the model was trained on hold air" in why_unlike([standardised], CT_MODELS["with its training"])
    cropped = [scan(each.voxels[0][8:12, 8:16, 8:16].clip(-150, 300)) for each in (ct(1), ct(2))]
    within = spec("ct", [*cropped, ct(3)])  # a training that knows scans without air
    assert why_unlike([scan(ct(9).voxels[0][8:12, 8:16, 8:16].clip(-150, 300))], within) == ""


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 30),
    scale=st.floats(1e-3, 1e7),
    shift=st.floats(-2, 2),
    kind=st.sampled_from(["f4", "f8"]),
    model=st.sampled_from(list(MR_MODELS)),
)
def test_no_scale_of_an_mr_is_held_against_it(seed, scale, shift, kind, model):
    voxels = (body(seed) + shift) * scale
    assert why_unlike([scan(voxels.astype(kind))], MR_MODELS[model]) == ""


@pytest.mark.parametrize("model", MR_MODELS)
def test_a_model_of_mr_takes_no_ct(model):
    taken = MR_MODELS[model]
    assert "looks like CT in Hounsfield units, the model was trained on MR" in why_unlike([ct(9)], taken)
    assert why_unlike([scan(ct(9).voxels[0], "ct")], taken) == "its header says CT, the model was trained on MR"
    assert why_unlike([mr(9)], taken) == ""


def test_ct_that_is_not_in_hounsfield_units_has_one_scale_too():
    scaled = spec("ct", [scan(body(seed).clip(0, 1)) for seed in range(3)])  # windowed to 0..1 by somebody
    assert why_unlike([scan(body(9).clip(0, 1))], scaled) == ""
    assert "its values reach" in why_unlike([scan(body(9) * 2000)], scaled)


def test_label_maps_constant_scans_and_colours():
    labels = scan(ndimage.zoom((body(5) > 0.4).astype(np.uint8) + (body(5) > 0.6), 2, order=0))
    assert "looks like a label map" in why_unlike([labels], MR_MODELS["with its training"])
    assert why_unlike([labels], spec("mr", [labels])) == ""  # shapes are what that model was trained on
    assert (
        why_unlike([scan(np.full((4, 8, 8), 7.0))], MR_MODELS["of an older version"])
        == "every voxel has the same value"
    )
    grey = scan(RNG.integers(0, 255, (1, 1, 32, 32)).astype(np.uint8).repeat(3, 0))
    colour = scan(RNG.integers(0, 255, (3, 1, 32, 32)).astype(np.uint8))
    assert "in colours" in why_unlike([colour], spec("xr", [grey]))
    assert "it is grey" in why_unlike([grey], spec("derm", [colour]))
    assert why_unlike([grey], spec("xr", [grey])) == why_unlike([colour], spec("derm", [colour])) == ""
    assert why_unlike([grey], spec("us", [grey, colour])) == why_unlike([colour], spec("us", [grey, colour])) == ""


@pytest.mark.parametrize(
    ("said", "told", "trained", "good"),
    [
        ("xr", "xr", "", True), ("mg", "xr", "", True), ("mg", "xr", "xr", False), ("xr", "mr", "", False),
        ("us", "us", "us", True), ("ot", "mr", "", True), ("mr", "unknown", "", True), ("mr", "unknown", "ct", False),
        ("ct", "ct", "mr", True), ("mr", "mri", "", True), ("xr", "x-ray", "", True), ("pt", "nm", "", True),
    ],
)  # fmt: skip
def test_headers_against_what_the_model_is_of(said, told, trained, good):
    training = [scan(body(seed), trained) for seed in range(2)] if trained else []
    assert (why_unlike([scan(body(9), said)], spec(told, training)) == "") == good


def test_each_channel_is_held_against_its_own():
    both = spec("ct", channels=("ct", "pet"), modalities=("ct", "pt"))
    assert why_unlike([ct(1), mr(1)], both) == ""
    assert why_unlike([None, mr(1)], both) == ""
    assert why_unlike([mr(1), mr(2)], both).startswith("channel ct: it is no CT")
    assert why_unlike([ct(1), scan(np.zeros((4, 8, 8)))], both) == ""  # stands for a missing channel


def test_real_scans_of_two_modalities(real_data):
    folder = real_data / "totalsegmentator_examples"
    names = ("example_ct.nii.gz", "pulmonary_ct.nii.gz", "aorta_ct.nii.gz")
    cts = [read(path)[0] for path in sorted(folder.glob("*_ct*.nii.gz")) if path.name in names]
    hippocampi = sorted((real_data / "msd_task04_hippocampus" / "imagesTr").glob("*.nii.gz"))[:40]
    others = [
        next(iter(sorted((real_data / name).rglob("imagesTr/*.nii.gz"))))
        for name in ("left_atrium_mr", "acdc_cardiac_mr")
    ]
    mrs = [read(path)[0] for path in (*hippocampi, *others)]
    of_ct, of_mr = spec("ct", cts[:-1]), spec("mr", mrs[:20])
    assert [why_unlike([each], of_ct) for each in cts] == [""] * len(cts)
    assert [why_unlike([each], of_mr) for each in mrs] == [""] * len(mrs)
    assert all(why_unlike([each], of_mr) for each in cts)
    assert all(why_unlike([each], of_ct) for each in mrs)
    assert all(why_unlike([each], spec("ct")) for each in mrs[:-2])


@pytest.mark.parametrize("as_dicom", [True, False])
def test_no_liver_in_an_mr_unless_it_is_forced(models, dicom, tmp_path, as_dicom):
    (tmp_path / "in").mkdir()
    if as_dicom:
        dicom.slices(
            tmp_path / "in", [(0.0, 0.0, 2.0 * n) for n in range(16)], Modality="MR", FrameOfReferenceUID="1.2.3",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.4", ImageType=["ORIGINAL", "PRIMARY", "M"], PatientSex="F",
        )  # fmt: skip
    else:
        nib.save(nib.Nifti1Image(mr(1).voxels[0], np.diag([1.5, 1.5, 2, 1])), tmp_path / "in" / "a.nii.gz")
    model, lines = models("segmentation", modality="ct"), []
    with pytest.raises(SomeFailed):
        predict(model, [tmp_path / "in"], tmp_path / "out", "cpu", tell=lines.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv"]
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines())
    assert "--force predicts it all the same" in row["reason"]
    written, table = predict(model, [tmp_path / "in"], tmp_path / "out", "cpu", tell=lines.append, force=True)
    assert written.suffix == (".dcm" if as_dicom else ".gz")
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert row["forced"]
    assert "predicted by --force" in lines[-1]
