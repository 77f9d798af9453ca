"""One entry for files of others, and the same files through `scanfoundry.backbones.load`."""

import pytest
import torch
from safetensors.torch import save_file

import scanfoundry.backbones as backbones
from scanfoundry.backbones import primus
from scanfoundry.backbones.foreign import load_foreign, load_foreign_whole
from scanfoundry.backbones.foreign.stunet_v1 import RELEASED_STRIDES
from scanfoundry.backbones.mednext import MedNeXt, MedNeXtConfig, MedNeXtEncoder
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import backbones as registered_backbones
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import WIDTHS_AND_DEPTHS, STUNet, STUNetConfig, STUNetEncoder
from scanfoundry.backbones.vit import ViTConfig, ViTEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of
from scanfoundry.datasets.intensity import IntensityConfig

SHAPE = (17, 16, 32)


@pytest.fixture
def stunet(monkeypatch, nnunet_v1):
    """A file of the released structure and classes, and its network."""
    monkeypatch.setitem(WIDTHS_AND_DEPTHS, "S", (4, 1))
    network = STUNet(STUNetEncoder(STUNetConfig(size="S", strides=RELEASED_STRIDES)), 105, deep_supervision=True)
    return nnunet_v1(network, torch.randn(1, 1, *SHAPE), name="small_ep4k.model"), network


@pytest.fixture
def files(stunet, nnssl, tmp_path, monkeypatch):
    """One file of every kind."""
    monkeypatch.setitem(primus.WIDTH_DEPTH_HEADS, "M", (72, 1, 2))
    trunk = build(PrimusConfig(grid=(2, 2, 2))).state_dict()
    patches = {f"down_projection.proj.{part}": trunk.pop(f"patch_embed.{part}") for part in ("weight", "bias")}
    tokens = nnssl(patches | {f"eva.{key}": value for key, value in trunk.items()}, name="primus.pth")
    resenc = build(ResEncConfig(features=(4, 6), blocks=(1, 2), strides=((2, 2, 2),))).state_dict()
    plan = {"architecture_plans": {"arch_class_name": "ResEncL"}}
    pyramid = nnssl({f"encoder.{key}": value for key, value in resenc.items()}, name="resenc.pth", **plan)
    vit = ViTEncoder(ViTConfig(size="Ti", in_channels=3)).state_dict()
    timm = {key: value for key, value in vit.items() if not key.startswith("patch_embed")}
    timm |= {f"patch_embed.proj.{part}": vit[f"patch_embed_2d.{part}"] for part in ("weight", "bias")}
    torch.save({"model": timm | {"pos_embed": torch.randn(1, 197, 192)}}, tmp_path / "mae.pth")
    mednext = MedNeXt(MedNeXtEncoder(MedNeXtConfig(size="S")), 4)
    torch.save({"state_dict": mednext.state_dict()}, tmp_path / "mednext.model")
    ours = {"stunet": stunet[0], "vit": tmp_path / "mae.pth", "mednext": tmp_path / "mednext.model"}
    return ours | {"resenc": pyramid, "primus": tokens}


@pytest.mark.parametrize("name", registered_backbones())
def test_every_kind_is_recognised_and_described(files, name):
    encoder, info, report = load_foreign(files[name], in_channels=2)
    assert encoder.config.name == name
    assert encoder.in_channels == 2
    assert info.backbone == encoder.config
    assert info.weights_sha256 == sha256_of(files[name])
    assert info.citation
    IntensityConfig.model_validate(info.intensity)  # what fine-tuning does with it
    assert report.source == files[name].name
    assert {*report.used, *report.adapted, *report.missing} == set(encoder.state_dict())
    lines = str(report).splitlines()
    assert len(lines) < 12
    assert max(len(line) for line in lines) < 400


def test_what_is_known_about_the_released_stunet(stunet):
    _, info, report = load_foreign(stunet[0])
    assert info.licence == "apache-2.0"
    assert info.crop_3d == (128, 128, 128)
    assert info.intensity == {"percentiles": [0.0, 100.0], "zscore": "scan"}
    assert any("1.5 mm" in note and "z-scored" in note for note in report.notes)


def test_other_peoples_stunets_are_not_given_the_authors_licence(stunet, tmp_path):
    network = STUNet(STUNetEncoder(STUNetConfig(size="S", strides=RELEASED_STRIDES)), 3)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "own.model")
    _, info, report = load_foreign(tmp_path / "own.model")
    assert info.licence == ""
    assert info.crop_3d is None
    assert info.intensity == {}
    assert any("licence is not in the file" in note for note in report.notes)


def test_a_vit_says_its_image_size_and_no_licence(files):
    _, info, _ = load_foreign(files["vit"], patch_3d=(8, 16, 16))
    assert info.crop_2d == (224, 224)
    assert info.licence == ""
    assert info.backbone.patch_3d == (8, 16, 16)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("vit", {"strides": RELEASED_STRIDES}, "is a ViT, which has no strides"),
        ("mednext", {"strides": RELEASED_STRIDES}, "is a MedNeXt, which has no strides"),
        ("stunet", {"patch_3d": (8, 8, 8)}, "is a STU-Net, which has no patch_3d"),
        ("primus", {"strides": RELEASED_STRIDES}, "is a Primus, which has no strides"),
    ],
)
def test_options_of_another_kind_are_refused(files, name, option, message):
    with pytest.raises(UserError, match=message):
        load_foreign(files[name], **option)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("stunet", {"in_channels": 0}, "in_channels is 0; give 1 or more"),
        ("mednext", {"in_channels": -1}, "in_channels is -1"),
        ("vit", {"patch_3d": (8, 0, 8)}, r"patch_3d\.1: .*greater than 0"),
        ("stunet", {"strides": ((3, 2, 2),) * 5}, r"strides\.0\.0"),
    ],
)
def test_values_that_are_not_allowed_are_refused_by_name(files, name, option, message):
    with pytest.raises(UserError, match=message):
        load_foreign(files[name], **option)
    with pytest.raises(UserError, match="num_classes is 0"):
        load_foreign_whole(files["stunet"], num_classes=0)


def test_whole_networks_come_with_their_heads(files, stunet):
    whole, report = load_foreign_whole(files["stunet"])
    theirs = stunet[1].state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in whole.state_dict().items())
    assert not report.missing
    whole, _ = load_foreign_whole(files["mednext"], num_classes=2)
    assert isinstance(whole, MedNeXt)
    for name, kind in (("vit", "ViT"), ("primus", "Primus")):
        with pytest.raises(UserError, match=f"{kind}, which has no decoder"):
            load_foreign_whole(files[name])
    with pytest.raises(UserError, match="has no decoder as nnU-Net's; read its encoder alone"):
        load_foreign_whole(files["resenc"])
    with pytest.raises(UserError, match="MedNeXt, which has no strides"):
        load_foreign_whole(files["mednext"], strides=RELEASED_STRIDES)


def test_a_file_of_no_known_kind_lists_its_first_keys(tmp_path):
    state = {f"layer{n}.weight": torch.ones(1) for n in range(20)}
    torch.save(state, tmp_path / "resnet.pth")
    with pytest.raises(
        UserError, match=r"STU-Net, ViT, MedNeXt, ResEnc, Primus.*first keys are layer0\.weight, .*layer7\.weight$"
    ):
        load_foreign(tmp_path / "resnet.pth")


def test_load_takes_files_of_others_and_tells_what_became_of_them(stunet, caplog):
    path, network = stunet
    encoder, info = backbones.load(path)
    told = caplog.text
    assert "small_ep4k.model: STU-Net S, encoder" in told
    assert "optimizer_state_dict" in told
    assert info.backbone.strides == RELEASED_STRIDES
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in encoder.state_dict().items())
    release = backbones.read_release(path)
    assert release.patients == []
    assert release.info == info.model_copy(update={"parts": ("encoder", "decoder", "head")})
    assert release.encoder.keys() == encoder.state_dict().keys()


def test_a_foreign_file_becomes_a_release_of_ours(stunet, tmp_path, caplog):
    encoder, info, _ = load_foreign(stunet[0])
    save_release(tmp_path / "release", {"encoder": encoder.state_dict()}, info, [])
    again, told = backbones.load(tmp_path / "release")
    assert again.config == encoder.config
    assert told.licence == info.licence
    assert caplog.text == ""
    x = torch.randn(1, 1, *SHAPE)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again(x), encoder(x), strict=True))
    read = backbones.read_release(tmp_path / "release" / "model.safetensors")
    assert read.info == told


def test_our_weights_without_their_description_are_not_guessed_at(tmp_path):
    for config in (
        STUNetConfig(size="S"),
        ViTConfig(size="Ti"),
        PrimusConfig(size="S"),
        ResEncConfig(features=(4,) * 6),
    ):
        save_file(build(config).state_dict(), tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"model\.json|no known kind"):
            backbones.load(tmp_path / "model.safetensors")


def test_a_web_page_in_place_of_weights_is_refused_by_load(tmp_path):
    (tmp_path / "base_ep4k.model").write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    with pytest.raises(UserError, match="web page"):
        backbones.load(tmp_path / "base_ep4k.model")
