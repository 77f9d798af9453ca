"""timm's own ViT and MAE's files against our features, in 2D exactly, in 3D by what inflation promises."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scanfoundry.backbones.foreign.timm_mae import LEFT, OTHER_TABLE, SAME_TABLE, load_encoder, resize_patch
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.layers.positions import sincos_positions
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.backbones.vit import WIDTH_DEPTH_HEADS, ViTConfig
from scanfoundry.configs.errors import UserError

SIZE = (64, 64)


def timm_vit(**options):
    """timm's ViT-Ti of 64x64 images, random weights, MAE's table as positions, float32 exactly representable."""
    ensure_torchvision()
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, global_pool="token", **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1, std=0.1)
    return model.double().eval()


def with_mae_table(model):
    front = model.pos_embed.shape[1] - 16
    table = torch.cat((torch.zeros(front, 192, dtype=torch.float64), sincos_positions((1, 4, 4), 192, True)))
    model.pos_embed.data = table[None]
    return model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return with_mae_table(timm_vit())


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file({key: value.float().contiguous() for key, value in model.state_dict().items()}, path)
    return path


def test_features_are_timms_own(model, path):
    encoder, report = load_encoder(read_weights(path))
    x = torch.randn(2, 3, 1, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        theirs = model.forward_features(x[:, :, 0])
        ours = encoder.double().eval().forward_tokens(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert encoder.config.size == "Ti"
    assert encoder.config.patch_2d == (16, 16)
    assert encoder.config.patch_3d == (16, 16, 16)
    assert report.left == {"pos_embed": SAME_TABLE}
    assert not report.missing
    assert set(report.adapted) == {"patch_embed_3d.weight"}
    assert report.used["patch_embed_2d.weight"] == "patch_embed.proj.weight"
    assert {*report.used, *report.adapted} == set(encoder.state_dict())


def test_registers_and_layer_scale_are_timms_own(tmp_path):
    model = with_mae_table(timm_vit(reg_tokens=3, init_values=1e-5, no_embed_class=True))
    torch.save({k: v.float() for k, v in model.state_dict().items()}, tmp_path / "a.pth")
    encoder, report = load_encoder(read_weights(tmp_path / "a.pth"))
    x = torch.randn(1, 3, 1, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.double().eval().forward_tokens(x), model.forward_features(x[:, :, 0]), rtol=1e-10, atol=1e-10
        )
    assert encoder.config.registers == 3
    assert encoder.extra_tokens == 4
    assert not report.missing
    assert report.left == {"pos_embed": SAME_TABLE}


def test_a_checkpoint_of_maes_own_training_leaves_its_decoder(model, tmp_path):
    """The layout of MAE's misc.save_model: decoder, optimiser, scaler and argparse's options beside the encoder."""
    state = {key: value.float() for key, value in model.state_dict().items()}
    decoder = {
        "mask_token": torch.randn(1, 1, 32),
        "decoder_pos_embed": torch.randn(1, 17, 32),
        "decoder_embed.weight": torch.randn(32, 192),
        "decoder_blocks.0.attn.qkv.weight": torch.randn(96, 32),
        "decoder_norm.bias": torch.randn(32),
        "decoder_pred.weight": torch.randn(768, 32),
    }
    content = {
        "model": state | decoder,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 7,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="mae_vit_tiny", lr=np.float64(1e-3)),
    }
    torch.save(content, tmp_path / "checkpoint-7.pth")
    encoder, report = load_encoder(read_weights(tmp_path / "checkpoint-7.pth"))
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items() if key in state)
    assert {key for key, why in report.left.items() if why == LEFT[r"decoder_.*|mask_token"]} == set(decoder)
    assert set(report.left) == {*decoder, "pos_embed", "optimizer", "epoch", "scaler", "args"}
    assert report.left["optimizer"] == "state of the optimiser (1 tensors)"
    assert not report.missing


def test_a_volume_constant_along_depth_gives_the_tokens_of_its_slice(path):
    encoder, _ = load_encoder(read_weights(path), patch_3d=(4, 16, 16))
    encoder.double()
    x = torch.randn(2, 3, 1, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        flat = encoder.patch_embed_2d(x)
        solid = encoder.patch_embed_3d(x.expand(-1, -1, 8, -1, -1)).view(2, 2, 6, -1)
    for layer in range(2):
        torch.testing.assert_close(solid[:, layer], flat, rtol=1e-6, atol=1e-6)


def test_grown_patches_answer_to_enlarged_images_as_the_old_ones_did(path):
    """FlexiViT's promise: <resized image patch, resized weights> = <image patch, weights>; exact where it grows."""
    encoder, report = load_encoder(read_weights(path), patch_2d=(24, 32), patch_3d=(8, 24, 32))
    small = torch.randn(5, 3, 16, 16)
    weight, how = resize_patch(read_weights(path).tensors["patch_embed.proj.weight"], (24, 32))
    large = nn.functional.interpolate(small, size=(24, 32), mode="bicubic", antialias=True)
    answers = torch.einsum("bchw,fchw->bf", large, weight)
    plain = torch.einsum("bchw,fchw->bf", small, read_weights(path).tensors["patch_embed.proj.weight"])
    torch.testing.assert_close(answers, plain, rtol=1e-3, atol=1e-3)
    assert how == "patch (16, 16) to (24, 32) by pseudo-inverse resizing"
    torch.testing.assert_close(encoder.patch_embed_2d.weight.detach(), weight)
    torch.testing.assert_close(encoder.patch_embed_3d.weight.detach().sum(dim=2), weight)
    assert report.adapted["patch_embed_3d.weight"][1] == f"{how}; spread evenly over depth 8"


def test_shrunk_patches_answer_to_smooth_images_nearly_as_before(path):
    weight = read_weights(path).tensors["patch_embed.proj.weight"].mean(dim=(2, 3), keepdim=True)
    weight = weight + torch.linspace(-1, 1, 16)[:, None] * torch.linspace(-1, 1, 16)
    small, _ = resize_patch(weight, (8, 8))
    image = torch.linspace(0, 1, 8)[None, None, :, None].expand(1, 3, -1, 8) + torch.linspace(0, 2, 8)
    large = nn.functional.interpolate(image, size=(16, 16), mode="bicubic", antialias=True)
    one, other = (torch.einsum("bchw,fchw->bf", i, w) for i, w in ((image, small), (large, weight)))
    torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(other.abs().max()))


@pytest.mark.parametrize("channels", [1, 2])
def test_grey_scans_in_equal_channels_give_the_tokens_of_rgb(path, channels):
    encoder, report = load_encoder(read_weights(path), in_channels=channels)
    rgb, _ = load_encoder(read_weights(path))
    x = torch.randn(2, 1, 1, *SIZE)
    with torch.no_grad():
        ours, theirs = encoder(x.expand(-1, channels, -1, -1, -1))[0], rgb(x.expand(-1, 3, -1, -1, -1))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    key, how = report.adapted["patch_embed_2d.weight"]
    assert key == "patch_embed.proj.weight"
    assert how.startswith(f"input channels 3 to {channels}: summed")


@pytest.mark.parametrize("spoil", ["learned", "shifted", "class", "odd"])
def test_other_positions_are_left_and_said(model, tmp_path, spoil):
    state = {key: value.float() for key, value in model.state_dict().items()}
    table = state["pos_embed"]
    state["pos_embed"] = {
        "learned": torch.randn_like(table) * 0.02,
        "shifted": table.roll(1, dims=1),
        "class": torch.cat((table[:, :1] + 0.1, table[:, 1:]), dim=1),
        "odd": table[:, :-2],
    }[spoil]
    torch.save(state, tmp_path / "a.pth")
    _, report = load_encoder(read_weights(tmp_path / "a.pth"))
    assert report.left == {"pos_embed": OTHER_TABLE}


def test_float32_arithmetic_of_the_table_still_counts_as_the_same(model, tmp_path):
    half = {key: value.half() for key, value in model.state_dict().items()}
    half["pos_embed"] = model.state_dict()["pos_embed"].float()[:, 1:]  # as models without a class position have it
    torch.save(half, tmp_path / "a.pth")
    _, report = load_encoder(read_weights(tmp_path / "a.pth"))
    assert report.left == {"pos_embed": SAME_TABLE}
    assert "float16 to float32" in report.adapted["cls_token"][1]
    assert "float16 to float32" in report.adapted["patch_embed_2d.weight"][1]


def test_heads_are_left_and_a_missing_norm_begins_fresh(model, tmp_path):
    state = {key: value.float() for key, value in model.state_dict().items() if not key.startswith("norm.")}
    head = {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5), "fc_norm.weight": torch.ones(192)}
    torch.save(state | head, tmp_path / "a.pth")
    _, report = load_encoder(read_weights(tmp_path / "a.pth"))
    assert set(report.left) == {*head, "pos_embed"}
    assert report.missing == {"norm.weight": "not in the file", "norm.bias": "not in the file"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blocks.0.attn.q_norm.weight", torch.ones(64), "not a plain ViT: blocks.0.attn.q_norm"),
        ("norm_pre.weight", torch.ones(192), "not a plain ViT: norm_pre"),
        ("blocks.12.norm1.weight", torch.ones(192), "192 wide and has 13 blocks"),
        ("patch_embed.proj.weight", torch.zeros(200, 3, 16, 16), "200 wide"),
        ("patch_embed.proj.weight", torch.zeros(192, 3, 2, 16, 16), "should be of a 2D ViT"),
        ("blocks.3.mlp.fc1.weight", torch.zeros(512, 192), "should be"),
    ],
)
def test_other_transformers_are_refused(model, tmp_path, key, value, message):
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    torch.save(state | {key: value}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_encoder(read_weights(tmp_path / "a.pth"))


@pytest.mark.parametrize("size", WIDTH_DEPTH_HEADS)
def test_every_size_is_read_off_the_shapes(size, tmp_path, monkeypatch):
    for known, (dim, depth, heads) in list(WIDTH_DEPTH_HEADS.items()):
        monkeypatch.setitem(WIDTH_DEPTH_HEADS, known, (dim // 16, depth, heads // heads))
    state = build(ViTConfig(size=size, in_channels=3)).state_dict()
    renamed = {"patch_embed.proj.weight": state["patch_embed_2d.weight"]}
    trunk = {key: value for key, value in state.items() if not key.startswith("patch_embed")}
    torch.save({"model": trunk | renamed}, tmp_path / "a.pth")
    encoder, _ = load_encoder(read_weights(tmp_path / "a.pth"))
    assert encoder.config.size == size
