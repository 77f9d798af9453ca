"""A synthetic file of the released structure, read whole and as encoder: every tensor, every key in the report."""

import pytest
import torch
from safetensors.torch import save_file

from scanfoundry.backbones.foreign.stunet_v1 import RELEASED_STRIDES, load_encoder, load_whole
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.stunet import WIDTHS_AND_DEPTHS, STUNet, STUNetConfig, STUNetEncoder
from scanfoundry.configs.errors import UserError

RECORD = {"epoch", "optimizer_state_dict", "lr_scheduler_state_dict", "plot_stuff", "best_stuff", "amp_grad_scaler"}
STEM = ("conv_blocks_context.0.0.conv1.weight", "conv_blocks_context.0.0.conv3.weight")
OTHER = ((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1))
SHAPE = (17, 16, 32)


@pytest.fixture(params=[("S", 1), ("L", 2)], ids=["one-block", "two-blocks"])
def network(request, monkeypatch):
    """A STU-Net of the size's depth and a quarter of its width, 5 classes, with deep supervision as in training."""
    size, depth = request.param
    monkeypatch.setitem(WIDTHS_AND_DEPTHS, size, (4, depth))
    encoder = STUNetEncoder(STUNetConfig(size=size, strides=RELEASED_STRIDES))
    return STUNet(encoder, 5, deep_supervision=True)


def accounted(report, weights, model):
    """Every key of file and model, each exactly once."""
    assert {*report.used, *report.adapted, *report.missing} == set(model.state_dict())
    assert len(report.used) + len(report.adapted) + len(report.missing) == len(model.state_dict())
    taken = {*report.used.values(), *(key for key, _ in report.adapted.values())}
    assert taken | set(report.left) == set(weights.tensors) | set(weights.others)
    assert not taken & set(report.left)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_whole_network_is_read_bit_for_bit(network, nnunet_v1, prefix):
    weights = read_weights(nnunet_v1(network, torch.randn(1, 1, *SHAPE), prefix))
    read, report = load_whole(weights)
    assert read.config == network.config
    ours, theirs = read.state_dict(), network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    x = torch.randn(1, 1, *SHAPE)
    network.deep_supervision = False
    with torch.no_grad():
        assert torch.equal(read(x), network(x))
    assert report.used == {key: key for key in theirs}
    assert set(report.left) == RECORD
    assert report.left["optimizer_state_dict"] == f"state of the optimiser ({len(theirs)} tensors)"  # the momentum
    assert not report.adapted
    assert not report.missing
    assert any("module." in note for note in report.notes) == bool(prefix)
    accounted(report, weights, read)


def test_the_encoder_alone_is_read_bit_for_bit(network, nnunet_v1):
    weights = read_weights(nnunet_v1(network, torch.randn(1, 1, *SHAPE)))
    encoder, report = load_encoder(weights)
    assert encoder.config == network.config
    assert encoder.config.strides == RELEASED_STRIDES
    assert any("strides" in note for note in report.notes)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])
        assert value.dtype == torch.float32
    decoder = {key for key in network.state_dict() if not key.startswith("conv_blocks_context")}
    assert set(report.left) == RECORD | decoder
    accounted(report, weights, encoder)
    encoder(torch.randn(1, 1, *SHAPE))[-1].sum().backward()  # the weights can be trained on
    assert all(p.grad is not None for p in encoder.parameters())


def test_other_strides_and_a_network_of_their_own_are_given(network, nnunet_v1):
    weights = read_weights(nnunet_v1(network, torch.randn(1, 1, *SHAPE)))
    encoder, report = load_encoder(weights, strides=OTHER)
    assert encoder.config.strides == OTHER
    assert not any("strides" in note for note in report.notes)


@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (4, 1), (3, 2), (2, 2)])
def test_input_channels_are_adapted_in_both_convolutions_that_see_them(monkeypatch, nnunet_v1, given, wanted):
    """Equal channels in, the same features out: the public loader forgets to divide, and the shortcut grows."""
    monkeypatch.setitem(WIDTHS_AND_DEPTHS, "S", (4, 1))
    network = STUNet(STUNetEncoder(STUNetConfig(size="S", in_channels=given, strides=RELEASED_STRIDES)), 3)
    x = torch.randn(1, 1, *SHAPE, dtype=torch.float64)
    weights = read_weights(nnunet_v1(network, x.float().expand(-1, given, -1, -1, -1)))
    encoder, report = load_encoder(weights, in_channels=wanted)
    assert encoder.config.in_channels == wanted
    theirs = STUNetEncoder(network.config).double()
    theirs.load_state_dict({k: v.double() for k, v in weights.tensors.items() if k.startswith("conv_blocks_context")})
    with torch.no_grad():
        ours = encoder.double()(x.expand(-1, wanted, -1, -1, -1))
        for one, other in zip(ours, theirs(x.expand(-1, given, -1, -1, -1)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # the weights were rounded to float32
    assert set(report.adapted) == (set(STEM) if given != wanted else set())
    if (given, wanted) == (1, 4):
        assert {how for _, how in report.adapted.values()} == {"input channels 1 to 4: repeated and divided by 4"}
        for key in STEM:
            assert torch.equal(encoder.state_dict()[key].float(), weights.tensors[key].repeat(1, 4, 1, 1, 1) / 4)
    accounted(report, weights, encoder)


def test_other_classes_get_fresh_heads(network, nnunet_v1):
    weights = read_weights(nnunet_v1(network, torch.randn(1, 1, *SHAPE)))
    read, report = load_whole(weights, num_classes=3)
    heads = {key for key in network.state_dict() if key.startswith("seg_outputs")}
    assert set(report.missing) == heads
    assert set(report.missing.values()) == {"heads of 5 classes, 3 are asked for"}
    for key, value in read.state_dict().items():
        assert torch.equal(value, network.state_dict()[key]) or key in heads
    assert read.seg_outputs[4].weight.shape[0] == 3
    accounted(report, weights, read)


@pytest.mark.parametrize("size", ["S", "B", "L", "H"])
def test_the_size_is_read_off_the_shapes(size, tmp_path, monkeypatch):
    for known, (width, depth) in list(WIDTHS_AND_DEPTHS.items()):
        monkeypatch.setitem(WIDTHS_AND_DEPTHS, known, (width // 16, depth))
    network = STUNet(STUNetEncoder(STUNetConfig(size=size, in_channels=2)), 2)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "a.pth")
    encoder, _ = load_encoder(read_weights(tmp_path / "a.pth"))
    assert encoder.config.size == size
    assert encoder.config.in_channels == 2


def test_half_precision_is_widened_and_said(network, tmp_path):
    torch.save({"state_dict": network.half().state_dict()}, tmp_path / "a.pth")
    encoder, report = load_encoder(read_weights(tmp_path / "a.pth"))
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    assert set(report.adapted) == set(encoder.state_dict())
    assert {how for _, how in report.adapted.values()} == {"float16 to float32"}


def test_an_encoder_alone_needs_its_strides(network, tmp_path):
    """A release of our own that lost its model.json looks like this: its strides cannot be guessed."""
    state = {k: v.contiguous() for k, v in network.state_dict().items() if k.startswith("conv_blocks_context")}
    save_file(state, tmp_path / "model.safetensors")
    weights = read_weights(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not say its strides"):
        load_encoder(weights)
    encoder, _ = load_encoder(weights, strides=OTHER)
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(UserError, match="no segmentation heads"):
        load_whole(weights, strides=OTHER)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s | {"conv_blocks_context.2.0.conv1.weight": torch.zeros(4, 4, 3, 3, 3)}, "should be"),
        (lambda s: s | {STEM[1]: s[STEM[1]] * float("nan")}, "no finite numbers"),
        (lambda s: s | {"conv_blocks_context.0.0.norm1.bias": torch.zeros(4, dtype=torch.int64)}, "no finite numbers"),
        (lambda s: s | {"attention.0.weight": torch.zeros(1)}, "not a plain STU-Net: it has attention"),
        (lambda s: s | {"conv_blocks_context.6.0.conv1.weight": torch.zeros(1)}, "no place in"),
        (lambda s: s | {STEM[0]: torch.zeros(5, 1, 3, 3, 3)}, "5 channels and"),
    ],
)
def test_weights_that_do_not_fit_are_refused(network, tmp_path, spoil, message):
    torch.save({"state_dict": spoil(network.state_dict())}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_encoder(read_weights(tmp_path / "a.pth"))


def test_what_the_file_lacks_begins_fresh_and_is_said(network, tmp_path):
    state = network.state_dict()
    lost = "conv_blocks_context.5.0.norm2.bias"
    torch.save({"state_dict": {key: value for key, value in state.items() if key != lost}}, tmp_path / "a.pth")
    encoder, report = load_encoder(read_weights(tmp_path / "a.pth"))
    assert report.missing == {lost: "not in the file"}
    assert torch.equal(encoder.state_dict()[lost], torch.zeros(64))
    assert f"initialised fresh: {lost}: not in the file" in str(report)
