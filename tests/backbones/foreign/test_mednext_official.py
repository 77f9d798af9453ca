"""The official MedNeXt's key names, encoder alone and whole, size and kernel from the shapes."""

import pytest
import torch

from scanfoundry.backbones.foreign.mednext_official import load_encoder, load_whole
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.mednext import MedNeXt, MedNeXtConfig, MedNeXtEncoder
from scanfoundry.backbones.mednext.encoder import BLOCKS
from scanfoundry.configs.errors import UserError

RECORD = {"epoch", "optimizer_state_dict", "lr_scheduler_state_dict", "plot_stuff", "best_stuff", "amp_grad_scaler"}
SHAPE = (17, 16, 16)


@pytest.fixture
def network():
    return MedNeXt(MedNeXtEncoder(MedNeXtConfig(size="S", kernel=3)), 4, deep_supervision=True)


def test_whole_and_encoder_are_read_bit_for_bit(network, nnunet_v1):
    weights = read_weights(nnunet_v1(network, torch.randn(1, 1, *SHAPE)))
    whole, report = load_whole(weights)
    theirs = network.state_dict()
    assert whole.config == network.config
    assert all(torch.equal(value, theirs[key]) for key, value in whole.state_dict().items())
    assert set(report.used) == set(theirs)
    assert set(report.left) == RECORD
    encoder, report = load_encoder(weights)
    assert encoder.config == network.config
    assert all(torch.equal(value, theirs[key]) for key, value in encoder.state_dict().items())
    assert set(report.used) == set(encoder.state_dict())
    assert set(report.left) == RECORD | (theirs.keys() - encoder.state_dict().keys())
    x = torch.randn(1, 1, *SHAPE)
    network.deep_supervision = False
    with torch.no_grad():
        assert torch.equal(whole(x), network(x))


@pytest.mark.parametrize("size", BLOCKS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_size_and_kernel_are_read_off_the_shapes(tmp_path, size, kernel):
    state = MedNeXtEncoder(MedNeXtConfig(size=size, kernel=kernel, in_channels=2)).state_dict()
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    encoder, report = load_encoder(read_weights(tmp_path / "a.pth"))
    assert encoder.config == MedNeXtConfig(size=size, kernel=kernel, in_channels=2)
    assert not report.left
    assert not report.missing


def test_channels_and_classes_are_adapted(network, nnunet_v1):
    weights = read_weights(nnunet_v1(network, torch.randn(1, 1, *SHAPE)))
    whole, report = load_whole(weights, in_channels=3, num_classes=2)
    assert set(report.adapted) == {"stem.weight"}
    assert set(report.missing) == {key for key in network.state_dict() if key.startswith("out_")}
    x = torch.randn(1, 1, *SHAPE)
    encoder, _ = load_encoder(weights)
    with torch.no_grad():
        one = whole.decode(load_encoder(weights, in_channels=3)[0](x.expand(-1, 3, -1, -1, -1)))
        other = network.decode(encoder(x))
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s | {"stem.weight": torch.zeros(48, 1, 1, 1, 1)}, "of width 48"),
        (lambda s: s | {"enc_block_0.0.conv1.weight": torch.zeros(32, 1, 7, 7, 7)}, "kernel 7"),
        (lambda s: s | {"bottleneck.2.conv1.bias": torch.zeros(512)}, r"blocks \(2, 2, 2, 2, 3\)"),
        (lambda s: s | {"enc_block_1.0.grn_gamma": torch.zeros(1)}, "no place in"),
    ],
)
def test_other_layouts_are_refused(network, tmp_path, spoil, message):
    torch.save({"state_dict": spoil(network.state_dict())}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_encoder(read_weights(tmp_path / "a.pth"))
