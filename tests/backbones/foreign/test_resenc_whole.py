"""Whole ResEnc U-Nets as nnU-Net v2 and nnssl save them: decoder and head, what the head predicts, and what is not so.

Files are written here under the original's names, which dynamic_network_architectures 0.4.4 has too.
"""

import json

import pytest
import torch
from torch import nn

from scanfoundry.backbones.foreign import load_foreign, load_foreign_parts, load_foreign_whole
from scanfoundry.backbones.models.description import RECONSTRUCTION
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.configs.errors import UserError

STRIDES = ((1, 2, 2), (2, 2, 2))
CONFIG = ResEncConfig(features=(4, 6, 8), blocks=(1, 2, 1), strides=STRIDES)
LABELS = {"background": 0, "spleen": 2, "liver": 1}
CONFIGURATION = {
    "spacing": [2.0, 1.0, 1.0],
    "patch_size": [16, 32, 32],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
}


def network_and_state(classes=3):
    """A network of ours with random weights, and its state dict under all of the original's names."""
    network = build(CONFIG).decoder(classes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.3)
    state = {}
    for key, value in network.state_dict().items():
        own = key.removeprefix("encoder.")
        places = ("encoder.", "decoder.encoder.") if key.startswith("encoder.") else ("decoder.",)
        for place in places:
            state[place + own] = value
            double = own.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
            if not own.startswith(("transpconvs.", "seg_layers.")):
                state[place + double] = value
    return network, state


def checkpoint(path, state, labels=None, **configuration):
    """What nnU-Net v2's trainer saves."""
    plans = {"configurations": {"3d_fullres": CONFIGURATION | configuration}, "transpose_forward": [0, 1, 2]}
    given = {"plans": plans, "configuration": "3d_fullres", "fold": 0}
    if labels:
        given["dataset_json"] = {"labels": labels, "channel_names": {"0": "CT"}}
    torch.save({"network_weights": state, "init_args": given, "trainer_name": "nnUNetTrainer"}, path)
    return path


def test_a_checkpoint_of_nnu_net_is_read_whole(tmp_path):
    network, state = network_and_state()
    path = checkpoint(tmp_path / "checkpoint_final.pth", state, LABELS)
    whole, report = load_foreign_whole(path)
    assert whole.config == CONFIG
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in whole.state_dict().items())
    assert not report.missing
    assert set(report.left) == (state.keys() - set(report.used.values())) | {"init_args", "trainer_name"}
    assert {report.left[key] for key in state if key in report.left} == {
        "the same values under the original's second name", "the encoder under its second name",
    }  # fmt: skip
    parts, info, _ = load_foreign_parts(path)
    assert parts.keys() == {"encoder", "decoder", "head"}
    assert (info.head.task, info.head.classes) == ("segmentation", ["liver", "spleen"])
    assert (info.head.patch, info.head.modality) == ((16, 32, 32), "nonct")
    assert info.spacing_mm == (2.0, 1.0, 1.0)
    assert info.intensity == {"percentiles": [0.0, 100.0], "zscore": "scan"}
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(whole(x)[0] if whole.deep_supervision else whole(x), network(x)[0])
    fewer, report = load_foreign_whole(path, num_classes=2)
    assert len(fewer.seg_layers[0].weight) == 2
    assert "a head of 3 outputs, 2 are asked for" in report.left["decoder.seg_layers.0.weight"]


def test_the_classes_are_named_by_the_dataset_json_beside_it(tmp_path):
    _, state = network_and_state()
    (tmp_path / "fold_0").mkdir()
    path = checkpoint(tmp_path / "fold_0" / "checkpoint_final.pth", state)
    assert load_foreign_parts(path)[1].head.classes == []
    for folder in (tmp_path, tmp_path / "fold_0"):  # nnU-Net puts it in the folder above
        (folder / "dataset.json").write_text(json.dumps({"labels": LABELS}))
        assert load_foreign_parts(path)[1].head.classes == ["liver", "spleen"]
        (folder / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LABELS | {"ignore": 3}, ["liver", "spleen"]),
        ({"background": 0, "whole": [1, 2], "core": 2}, []),
        ({"background": 0, "liver": 1}, []),
        ({"background": 0, "liver": 1, "x" * 200: 2}, []),
        (["background", "liver", "spleen"], []),
    ],
    ids=["ignored", "regions", "other number", "no name", "no mapping"],
)
def test_classes_are_named_only_where_each_output_is_one(tmp_path, labels, names):
    path = checkpoint(tmp_path / "c.pth", network_and_state()[1], labels)
    assert load_foreign_parts(path)[1].head.classes == names


def test_other_intensities_are_not_taken_for_ours(tmp_path):
    path = checkpoint(tmp_path / "c.pth", network_and_state()[1], LABELS, normalization_schemes=["CTNormalization"])
    info = load_foreign_parts(path)[1]
    assert info.head.modality == "unknown"
    assert info.intensity == {}


def test_the_head_of_a_masked_pre_training_reconstructs(nnssl):
    network, state = network_and_state(1)
    parts, info, _ = load_foreign_parts(nnssl(state))
    assert parts.keys() == {"encoder", "decoder", "head"}
    assert info.head.task == RECONSTRUCTION
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in parts["decoder"].items())


def test_a_decoder_without_a_head_is_kept(nnssl):
    _, state = network_and_state()
    path = nnssl({key: value for key, value in state.items() if ".seg_layers." not in key})
    parts, info, report = load_foreign_parts(path)
    assert parts.keys() == {"encoder", "decoder"}
    assert info.head is None
    assert set(report.missing.values()) == {"no head in the file"}


def test_a_decoder_of_another_layout_is_left(tmp_path):
    _, state = network_and_state()
    deeper = {f"decoder.stages.0.convs.1.conv.{kind}": torch.ones(6) for kind in ("weight", "bias")}
    for changed in (
        state | deeper,
        state | {"decoder.stages.1.convs.0.conv.weight": torch.ones(4, 4, 3, 3, 3)},  # without skips
        {key: value for key, value in state.items() if key != "decoder.transpconvs.1.bias"},
    ):
        doubles = {key: value for key, value in changed.items() if ".all_modules." not in key}
        path = checkpoint(tmp_path / "c.pth", doubles, LABELS)
        assert load_foreign_parts(path)[0].keys() == {"encoder"}
        assert load_foreign(path)[0].config == CONFIG
        with pytest.raises(UserError, match="no decoder as nnU-Net's; read its encoder alone"):
            load_foreign_whole(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("decoder.encoder.stem.convs.0.conv.bias", "decoder.encoder.stem.convs.0.conv.bias and encoder.stem.*differ"),
        ("decoder.stages.0.convs.0.all_modules.0.bias", "all_modules.0.bias and .*differ, and are one"),
    ],
)
def test_second_names_of_other_values_are_damage(tmp_path, key, message):
    _, state = network_and_state()
    path = checkpoint(tmp_path / "c.pth", state | {key: state[key] + 1}, LABELS)
    with pytest.raises(UserError, match=message):
        load_foreign_parts(path)


def test_a_head_that_lacks_a_level_is_no_whole_network(tmp_path):
    _, state = network_and_state()
    path = checkpoint(tmp_path / "c.pth", {k: v for k, v in state.items() if k != "decoder.seg_layers.0.bias"}, LABELS)
    with pytest.raises(UserError, match=r"no whole ResEnc: it has no seg_layers.0.bias"):
        load_foreign_parts(path)
