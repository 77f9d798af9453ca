"""What an adaptation plan says is anyone's word: right ones are believed, odd ones cost nothing."""

import pytest
import torch

from scanfoundry.backbones.foreign import load_foreign
from scanfoundry.backbones.foreign.openmind import triple
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.resenc import ResEncConfig, ResEncEncoder
from scanfoundry.configs.errors import UserError

RESENC = {"architecture_plans": {"arch_class_name": "ResEncL"}}


@pytest.fixture
def state():
    encoder = ResEncEncoder(ResEncConfig(features=(2, 3), blocks=(1, 1), strides=((2, 2, 2),)))
    return {f"encoder.{key}": value for key, value in encoder.state_dict().items()}


def test_what_is_known_about_openminds_weights(nnssl, state):
    _, info, report = load_foreign(nnssl(state, **RESENC))
    assert info.licence == "cc-by-4.0"
    assert "arXiv 2412.17041" in info.citation
    assert info.crop_3d == (160, 160, 160)
    assert info.intensity == {"percentiles": [0.0, 100.0]}
    assert info.objective == "nnssl: BaseMAETrainer_BS8"
    notes = " ".join(report.notes)
    assert "Dataset745_OpenNeuro_v2" in notes
    assert "1 x 1 x 1 mm" in notes
    assert "z-scored over all voxels" in notes


def test_other_peoples_weights_are_not_given_the_authors_licence(nnssl, state):
    plan = {"dataset_name": "Dataset800_Private", "configurations": {"3d": {"patch_size": [64, 96, 64]}}}
    path = nnssl(state, **RESENC, pretrain_plan=plan, recommended_downstream_patchsize=None)
    _, info, report = load_foreign(path)
    assert info.licence == ""
    assert "Isensee" in info.citation
    assert info.crop_3d == (64, 96, 64)
    assert info.intensity == {}
    assert any("licence is not in the file" in note for note in report.notes)
    assert not any("spacing" in note or "z-scored" in note for note in report.notes)


@pytest.mark.parametrize(
    "plan",
    [
        {"pretrain_plan": None, "recommended_downstream_patchsize": [160, 160]},
        {"pretrain_plan": [], "recommended_downstream_patchsize": {"a": 1}, "key_to_encoder": 3},
        {
            "pretrain_plan": {"configurations": {"a": 7}, "dataset_name": 5},
            "recommended_downstream_patchsize": [0, 1, 2],
        },
        {"pretrain_plan": {"configurations": {"a": {"spacing": [1, "x", 1]}}}, "recommended_downstream_patchsize": "1"},
        {
            "pretrain_plan": {"configurations": {}, "dataset_name": "OpenMind, honestly"},
            "recommended_downstream_patchsize": 8,
        },
    ],
)
def test_an_odd_plan_says_nothing_and_breaks_nothing(nnssl, state, plan):
    encoder, info, _ = load_foreign(nnssl(state, **(RESENC | plan)))
    assert encoder.config.features == (2, 3)
    assert (info.licence, info.crop_3d) == ("", None)


def test_a_trainers_name_that_is_none_is_not_repeated(nnssl, state, tmp_path):
    content = torch.load(nnssl(state, **RESENC))
    torch.save(content | {"trainer_name": "a\nb" * 5}, tmp_path / "odd.pth")
    _, info, _ = load_foreign(tmp_path / "odd.pth")
    assert info.objective is None


class Malicious:
    def __reduce__(self):
        return print, ("code in a checkpoint",)


def test_code_among_the_records_is_refused_and_named(state, tmp_path, capsys):
    plan = {"architecture_plans": {"arch_class_name": Malicious()}}
    torch.save({"network_weights": state, "nnssl_adaptation_plan": plan}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"refused: reading it would run .*print"):
        load_foreign(tmp_path / "bad.pth")
    assert "code in a checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_download_that_broke_off_is_refused(nnssl, state, share):
    path = nnssl(state, **RESENC)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="download it again"):
        load_foreign(path)


def test_records_beside_the_weights_are_kept(nnssl, state):
    weights = read_weights(nnssl(state, **RESENC))
    assert weights.records["trainer_name"] == "BaseMAETrainer_BS8"
    assert weights.records.keys() == weights.others.keys()


def test_whole_numbers():
    assert triple([1, 2, 3]) == (1, 2, 3)
    for wrong in ([1, 2], [1, 2, 3.0], [True, 2, 3], [1, 2, -3], "123", None):
        assert triple(wrong) is None
