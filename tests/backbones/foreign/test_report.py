"""The report's groups and counts, and the filling that it accounts for."""

import pytest
import torch
from torch import nn

from scanfoundry.backbones.foreign.report import Report, families
from scanfoundry.backbones.foreign.weights import Taken, Weights, adapt_channels, fill, read_weights
from scanfoundry.configs.errors import UserError


def test_many_keys_print_in_few_lines():
    used = {f"blocks.{n}.attn.weight": f"blocks.{n}.attn.weight" for n in range(12)} | {"cls": "cls"}
    report = Report(
        "a.pth",
        "a network",
        used,
        {"stem.weight": ("stem.weight", "halved")},
        {"head": "no use", "tail": "no use", "epoch": "a record"},
        {"new.bias": "not in the file"},
        ("mind this",),
    )
    assert str(report).splitlines() == [
        "a.pth: a network",
        "  used as they are: 13: blocks.* (12), cls",
        "  adapted: stem.weight: halved",
        "  left in the file: head, tail: no use",
        "  left in the file: epoch: a record",
        "  initialised fresh: new.bias: not in the file",
        "  note: mind this",
    ]
    assert families([]) == "none"
    assert families(f"out_{n}.w" for n in range(5)) == "5: out_*.* (5)"


def test_a_key_that_is_neither_used_nor_left_is_an_error(tmp_path):
    weights = Weights(tmp_path / "a.pth", {"weight": torch.ones(1, 2), "other": torch.ones(1)}, {})
    taken = {"weight": Taken("weight", weights.tensors["weight"])}
    with pytest.raises(ValueError, match=r"\['other'\] neither used nor left"):
        fill(lambda: nn.Linear(2, 1), weights, taken, {}, "a line")
    model, report = fill(lambda: nn.Linear(2, 1), weights, taken, {"other": "no use"}, "a line")
    assert torch.equal(model.weight, torch.ones(1, 2))
    assert report.missing == {"bias": "not in the file"}
    model.weight.detach().zero_()
    assert weights.tensors["weight"].all()  # a copy: the file's tensors may be mapped from disk


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (3, 1), (3, 2), (2, 5)])
def test_equal_channels_get_the_same_answer_after_adaptation(given, wanted):
    weight, x = torch.randn(4, given, 3, 3, 3, dtype=torch.float64), torch.randn(1, 1, 5, 5, 5, dtype=torch.float64)
    adapted, how = adapt_channels(weight.float(), wanted)
    plain = nn.functional.conv3d(x.expand(-1, given, -1, -1, -1), weight.float().double())
    ours = nn.functional.conv3d(x.expand(-1, wanted, -1, -1, -1), adapted.double())
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert how.startswith(f"input channels {given} to {wanted}: ")


@pytest.mark.parametrize("container", ["state_dict", "network_weights", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_state_is_found_wherever_it_lies(tmp_path, container, prefix):
    state = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b.weight": torch.zeros(1)}
    torch.save(state if container is None else {container: state, "epoch": 1}, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert list(weights.tensors) == ["a.weight", "b.weight"]
    assert weights.prefix == prefix
    assert weights.others == ({} if container is None else {"epoch": "a record of the training"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "best": 0.5}, "no weights by name; its first keys are epoch, best"),
        ([torch.ones(1)], "holds a list"),
        ({}, "first keys are none"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "a.pth")
