"""ResEnc as nnssl and nnU-Net v2 save it: every layer under two names, the encoder once more within the decoder."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scanfoundry.backbones.foreign import load_foreign
from scanfoundry.backbones.foreign.openmind_resenc import load_encoder
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.configs.errors import UserError

STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 1))
CONFIG = ResEncConfig(features=(4, 6, 8, 8), blocks=(1, 2, 1, 2), strides=STRIDES)
HALVES = ((2, 2, 2),) * 3
PLAN = {"key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem"}
RESENC_L = {"arch_class_name": "ResEncL", "arch_kwargs": None}
DYNAMIC = {
    "arch_class_name": "ResidualEncoderUNet",
    "arch_kwargs": {"strides": [[1, 1, 1], *(list(stride) for stride in STRIDES)]},
}


def unet_state(config=CONFIG, decoder=True, name="encoder."):
    """A U-Net's state dict under the original's names, and the encoder's values by ours."""
    encoder = build(config)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=0.1)
    ours, state = encoder.state_dict(), {}
    for where in (name, "decoder.encoder.") if decoder else (name,):
        for key, value in ours.items():
            state[where + key] = value
            double = key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
            state[where + double] = value  # the same tensor, as torch saves it
    if decoder:
        pairs = list(zip(config.features[:0:-1], config.features[-2::-1], config.strides[::-1], strict=True))
        for n, (deep, fine, stride) in enumerate(pairs):
            state[f"decoder.stages.{n}.convs.0.conv.weight"] = torch.randn(fine, 2 * fine, 3, 3, 3)
            state[f"decoder.transpconvs.{n}.weight"] = torch.randn(deep, fine, *stride)
            state[f"decoder.seg_layers.{n}.weight"] = torch.randn(1, fine, 1, 1, 1)
    return state, ours


def test_the_encoder_is_read_bit_for_bit_and_every_key_accounted_for(nnssl):
    state, ours = unet_state()
    path = nnssl(state, **PLAN, architecture_plans=DYNAMIC)
    encoder, report = load_encoder(read_weights(path))
    assert encoder.config == CONFIG
    assert all(torch.equal(value, ours[key]) for key, value in encoder.state_dict().items())
    assert report.used == {key: f"encoder.{key}" for key in ours}
    records = {"trainer_name", "init_args", "citations", "nnssl_adaptation_plan"}
    assert set(report.left) == (state.keys() - set(report.used.values())) | records
    assert "second name" in report.left["encoder.stem.convs.0.all_modules.1.bias"]
    assert not report.missing
    assert not report.adapted


@pytest.mark.parametrize(
    ("plans", "decoder", "strides"),
    [
        (RESENC_L, False, HALVES),
        ({"arch_class_name": "NoSkipResEncL"}, True, HALVES),
        (DYNAMIC, False, STRIDES),
        (None, True, STRIDES),
    ],
    ids=["architecture", "architecture before decoder", "its arguments", "decoder"],
)
def test_strides_are_taken_from_what_says_them(nnssl, plans, decoder, strides):
    path = nnssl(unet_state(decoder=decoder)[0], **PLAN, architecture_plans=plans)
    encoder, _, report = load_foreign(path)
    assert encoder.config.strides == strides
    assert any(str(strides) in note for note in report.notes)
    encoder, _, report = load_foreign(path, strides=((1, 1, 2),) * 3)  # the caller knows best
    assert encoder.config.strides == ((1, 1, 2),) * 3
    assert not any("strides" in note for note in report.notes)


def test_strides_are_not_guessed(nnssl, tmp_path):
    state, ours = unet_state(decoder=False)
    save_file(ours, tmp_path / "model.safetensors")  # our own weights, without their model.json
    told = [[1, 1, 1], [2, 2, 2], "x", None]
    bad = nnssl(state, architecture_plans={"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": {"strides": told}})
    with pytest.raises(UserError, match="does not say its strides: give strides"):
        load_foreign(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"strides\.1"):
        load_foreign(bad)
    with pytest.raises(UserError, match="4 levels of features need 4 numbers of blocks and 3 strides"):
        load_foreign(tmp_path / "model.safetensors", strides=((2, 2, 2),) * 2)
    encoder, _, _ = load_foreign(tmp_path / "model.safetensors", strides=STRIDES)
    assert encoder.config == CONFIG


def test_a_residual_u_net_of_nnu_net_has_no_plan_of_nnssl(tmp_path):
    state, ours = unet_state()
    content = {"network_weights": state, "init_args": {"plans": {"dataset_name": "Dataset001_A"}}, "current_epoch": 9}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    encoder, info, report = load_foreign(tmp_path / "checkpoint_final.pth")
    assert encoder.config == CONFIG
    assert all(torch.equal(value, ours[key]) for key, value in encoder.state_dict().items())
    assert info.licence == ""
    assert "arXiv 2404.09556" in info.citation
    assert any("that its decoder undoes" in note for note in report.notes)


def test_other_copies_are_told_apart_by_the_plan(nnssl):
    state, ours = unet_state(decoder=False, name="student.encoder.")
    teacher, others = unet_state(decoder=False, name="t.encoder.")
    plans = {"key_to_encoder": "student.encoder.stages", "architecture_plans": DYNAMIC}
    encoder, _, report = load_foreign(nnssl(state | teacher, **plans))
    assert torch.equal(encoder.state_dict()["stem.convs.0.conv.bias"], ours["stem.convs.0.conv.bias"])
    assert teacher.keys() <= report.left.keys()
    encoder, _, _ = load_foreign(nnssl(state | teacher, architecture_plans=DYNAMIC))  # without one: the shorter name
    assert torch.equal(encoder.state_dict()["stem.convs.0.conv.bias"], others["stem.convs.0.conv.bias"])


def test_prefixes_of_wrappers_are_dropped(nnssl):
    state, ours = unet_state()
    path = nnssl({f"module._orig_mod.{key}": value for key, value in state.items()}, **PLAN, architecture_plans=DYNAMIC)
    encoder, _, _ = load_foreign(path)
    assert all(torch.equal(value, ours[key]) for key, value in encoder.state_dict().items())


def test_channels_are_adapted(nnssl):
    path = nnssl(unet_state()[0], **PLAN, architecture_plans=DYNAMIC)
    one, three = (load_foreign(path, in_channels=n) for n in (1, 3))
    assert set(three[2].adapted) == {"stem.convs.0.conv.weight"}
    x = torch.randn(2, 1, 8, 16, 16)
    with torch.no_grad():
        for a, b in zip(three[0](x.expand(-1, 3, -1, -1, -1)), one[0](x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def broken(state, key, value):
    changed = dict(state)
    if value is None:
        del changed[key]
    else:
        changed[key] = value
    return changed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.stages.1.blocks.1.conv2.norm.bias", None, "no whole ResEnc.*stages.1.blocks.1.conv2.norm.bias"),
        ("encoder.stages.1.blocks.0.skip.1.norm.bias", None, "no whole ResEnc.*skip.1.norm.bias"),
        ("encoder.stages.2.se.weight", torch.ones(3), "stages.2.se.weight has no place"),
        ("encoder.stages.0.blocks.0.conv2.conv.weight", torch.ones(4, 4, 1, 3, 3), r"should be \(4, 4, 3, 3, 3\)"),
        ("encoder.stem.convs.0.all_modules.0.bias", torch.ones(4), "differ, and are one"),
        ("encoder.stem.convs.0.norm.bias", torch.full((4,), torch.nan), "no finite numbers"),
        ("encoder.stem.convs.0.conv.weight", torch.ones(4, 1, 3, 3), "for images alone"),
    ],
)
def test_what_is_no_whole_resenc_is_refused(nnssl, key, value, message):
    state, _ = unet_state()
    doubles = {key.replace(".norm.", ".all_modules.1."), key.replace(".conv.", ".all_modules.0.")} - {key}
    state = {name: tensor for name, tensor in state.items() if name not in doubles}
    path = nnssl(broken(state, key, value), **PLAN, architecture_plans=DYNAMIC)
    with pytest.raises(UserError, match=message):
        load_foreign(path)


def test_another_architecture_is_refused_by_its_name(nnssl):
    path = nnssl(unet_state()[0], architecture_plans={"arch_class_name": "MultiTalentNet"})
    with pytest.raises(UserError, match="says that it is a 'MultiTalentNet'; known are ResEncL"):
        load_foreign(path)
