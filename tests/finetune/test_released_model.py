"""A released STU-Net predicts at once, as a plain restatement does; what cannot predict says what to type."""

import json

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import nn

from scanfoundry.backbones.foreign import load_foreign_parts
from scanfoundry.backbones.foreign.stunet_v1 import RELEASED_STRIDES
from scanfoundry.backbones.foreign.totalsegmentator import CLASSES
from scanfoundry.backbones.layers.u_decoder import UDecoder
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.parts import split
from scanfoundry.backbones.models.release import Release, save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import WIDTHS_AND_DEPTHS, STUNet, STUNetConfig, STUNetEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.heads.segmentation import SegmentationModel
from scanfoundry.finetune.model_file import load_model, save_model
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.released_model import spec_of_release
from scanfoundry.finetune.spec import Spec

PATCH = (32, 32, 64)  # the released 128^3 would take gigabytes here


@pytest.fixture
def released(monkeypatch, tmp_path):
    """A small STU-Net of the released layout, installed under its name; and its network."""
    torch.manual_seed(5)
    monkeypatch.setitem(WIDTHS_AND_DEPTHS, "S", (4, 1))
    monkeypatch.setenv("SCANFOUNDRY_MODELS", str(tmp_path / "models"))
    network = STUNet(STUNetEncoder(STUNetConfig(size="S", strides=RELEASED_STRIDES)), 105)
    for parameter in network.seg_outputs.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.zeros_(network.seg_outputs[-1].bias)  # so that the voxels decide, and many classes are found
    torch.save({"state_dict": network.state_dict()}, tmp_path / "small_ep4k.model")
    parts, info, _ = load_foreign_parts(tmp_path / "small_ep4k.model")
    assert info.head.patch == (128, 128, 128)
    info = info.model_copy(update={"head": info.head.model_copy(update={"patch": PATCH})})
    save_release(tmp_path / "models" / "stunet-s", parts, info, [])
    return network.eval()


def ct(shape, spacing, path):
    """Smooth tissue in air, written as NIfTI; gives the voxels (D, H, W)."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 1, *(-(-n // 4) for n in shape), generator=generator)
    smooth = F.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy()
    voxels = np.where(smooth > -0.2, np.round(smooth * 150), -1000).astype(np.int16)
    affine = np.diag([*spacing[::-1], 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine), path)
    return voxels


@pytest.mark.parametrize(
    ("shape", "spacing"), [((32, 32, 64), (1.5, 1.5, 1.5)), ((16, 32, 32), (3.0, 1.5, 3.0))], ids=["as it is", "coarse"]
)
def test_a_released_stunet_predicts_as_the_restatement(released, tmp_path, shape, spacing):
    (tmp_path / "scans").mkdir()
    voxels = ct(shape, spacing, tmp_path / "scans" / "a.nii.gz")
    written = predict("stunet-s", [tmp_path / "scans"], tmp_path / "out", "cpu")
    found = np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj).transpose(2, 1, 0)
    scan = torch.tensor(voxels, dtype=torch.float64)[None, None]
    scan = (scan - scan.mean()) / scan.std(unbiased=False)
    with torch.no_grad():
        logits = released.double()(F.interpolate(scan, size=PATCH, mode="trilinear"))
    shrinkage = np.array(PATCH) / np.array(shape)  # logits are smoothed before they shrink
    logits = torch.from_numpy(gaussian_filter(logits.numpy(), (0, 0, *(shrinkage - 1) / 2)))
    logits = F.interpolate(logits, size=shape, mode="trilinear")[0]
    top = logits.topk(2, dim=0)
    sure = (top.values[0] - top.values[1] > 1e-3 * logits.std()).numpy()
    assert sure.mean() > 0.99
    assert np.array_equal(found[sure], top.indices[0].numpy()[sure])
    assert len(np.unique(found)) > 5
    table = next(path for path in written if path.suffix == ".csv").read_text().splitlines()
    columns = table[0].split(",")
    assert [name for name in columns if "rib_left_1_" in name or name.startswith("rib_left_1")]
    assert sum(any(column.startswith(name) for name in CLASSES) for column in columns) >= 104


def test_the_specification_is_the_authors(released, tmp_path):
    adapter, (model,) = load_model("stunet-s")
    spec = adapter.spec
    assert spec.classes == list(CLASSES)
    assert len(CLASSES) == 104
    assert (spec.plan.spacing, spec.plan.patch, spec.modality) == ((1.5, 1.5, 1.5), PATCH, "nonct")
    assert (spec.intensity.percentiles, spec.intensity.zscore) == ((0.0, 100.0), "scan")
    assert spec.flip_axes == []
    ours = model.net.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in released.state_dict().items())
    adapter, _ = load_model(tmp_path / "small_ep4k.model")  # the authors' file itself
    assert adapter.spec.plan.patch == (128, 128, 128)
    assert adapter.spec.classes == list(CLASSES)


def test_an_mr_is_refused_by_a_model_of_ct(released, tmp_path):
    (tmp_path / "scans").mkdir()
    voxels = np.random.default_rng(0).integers(0, 900, (8, 32, 32)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 1.5, 1.0])), tmp_path / "scans" / "mr.nii.gz")
    with pytest.raises(UserError, match="it is no CT in Hounsfield units"):
        predict("stunet-s", [tmp_path / "scans"], tmp_path / "out", "cpu")


@pytest.mark.parametrize(
    ("change", "parts", "message"),
    [
        ({"head": None}, ("encoder", "decoder"), r"is a pre-trained encoder, .*it has no head.* checkpoint=stunet-s"),
        ({"head": {"task": "reconstruction"}}, (), "predicts nothing .its head reconstructs voxels"),
        ({"head": {"task": "segmentation"}}, (), r"the classes of stunet-s have no names.*checkpoint_classes=\[liver"),
        ({"head": {"task": "classification", "classes": ["a"]}}, (), "is a release for classification"),
        ({"spacing_mm": None}, (), "does not say its spacing_mm"),
        ({"head": {"task": "segmentation", "classes": ["a"]}}, (), "does not say its patch"),
        ({}, ("encoder", "head"), "has a head without a decoder"),
    ],
)  # fmt: skip
def test_what_cannot_predict_says_what_to_type(released, tmp_path, change, parts, message):
    path = tmp_path / "models" / "stunet-s" / "model.json"
    described = json.loads(path.read_text()) | change
    info = ReleaseInfo.model_validate(described)
    network = build(info.backbone).decoder(105)
    weights = split(network, network.state_dict())
    release = Release({part: weights[part] for part in parts or weights}, info, [])
    with pytest.raises(UserError, match=message) as raised:
        spec_of_release("stunet-s", release)
    assert "\n" not in str(raised.value)


def test_weights_of_other_classes_than_described_are_refused(released, tmp_path):
    path = tmp_path / "models" / "stunet-s" / "model.json"
    described = json.loads(path.read_text())
    described["head"]["classes"] = ["liver"]
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="stunet-s does not fit its own description"):
        load_model("stunet-s")


def test_a_resenc_that_was_fine_tuned_with_the_earlier_decoder_still_predicts(tmp_path):
    backbone = ResEncConfig(features=(4, 6), blocks=(1, 1), strides=((2, 2, 2),))
    known = Fingerprint(scans=1, shape=(8, 8, 8), spacing=(1, 1, 1), is_2d=False)
    spec = Spec(
        task=SegmentationTask(), classes=["a", "b"], modality="mr", intensity=IntensityConfig(), backbone=backbone,
        inference=InferenceConfig(), plan=Plan(spacing=(1, 1, 1), patch=(8, 8, 8), batch=1, fingerprint=known),
    )  # fmt: skip
    encoder = build(backbone)
    model = SegmentationModel(encoder, 3, False)
    model.net = UDecoder(encoder, (4, 6), 3)
    save_model(tmp_path, [model], spec)
    _, (found,) = load_model(tmp_path)
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(found(x), model.eval()(x))
