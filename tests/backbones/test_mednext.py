"""MedNeXt against the published counts, the original's key names, a plain restatement and MONAI's network."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.mednext import MedNeXtConfig, MedNeXtEncoder
from scanfoundry.backbones.mednext import encoder as mednext
from scanfoundry.backbones.mednext.blocks import MedNeXtBlock, MedNeXtDownBlock
from scanfoundry.backbones.mednext.decoder import DepthFreeConvTranspose3d, MedNeXt, MedNeXtUpBlock
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import load_encoder, save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.errors import UserError

COUNTS = {  # 1 channel, 105 classes, with the original's dummy_tensor
    ("S", 3): 5_655_534,
    ("B", 3): 10_630_926,
    ("M", 3): 17_653_582,
    ("L", 3): 61_883_886,
    ("S", 5): 6_085_166,
    ("B", 5): 11_060_558,
    ("M", 5): 18_365_454,
    ("L", 5): 63_097_518,
}
COUNTS_14_CLASSES = {"S": 5_564_807, "B": 10_540_199, "M": 17_562_855, "L": 61_793_159}


def whole_on_meta(size, kernel, classes):
    with torch.device("meta"):
        return MedNeXt(build(MedNeXtConfig(size=size, kernel=kernel)), classes)


@pytest.mark.parametrize(("size", "kernel"), COUNTS)
def test_parameter_counts_are_the_published_ones(size, kernel):
    network = whole_on_meta(size, kernel, 105)
    assert sum(p.numel() for p in network.parameters()) + network.dummy_tensor.numel() == COUNTS[size, kernel]
    if kernel == 3:
        state = whole_on_meta(size, kernel, 14).state_dict()
        assert sum(value.numel() for value in state.values()) == COUNTS_14_CLASSES[size]


def test_key_names_are_the_originals():
    keys = set(whole_on_meta("M", 3, 2).state_dict())
    block = r"(conv1|norm|conv2|conv3)\.(weight|bias)"
    pattern = re.compile(
        rf"stem\.(weight|bias)|(enc_block|dec_block)_[0-3]\.[0-3]\.{block}|bottleneck\.[0-3]\.{block}"
        rf"|(down|up)_[0-3]\.({block}|res_conv\.(weight|bias))|out_[0-4]\.conv_out\.(weight|bias)|dummy_tensor"
    )
    assert [key for key in keys if not pattern.fullmatch(key)] == []
    blocks = (3, 4, 4, 4, 4, 4, 4, 4, 3)
    assert len(keys) == 2 + 8 * sum(blocks) + 8 * 10 + 5 * 2 + 1
    encoder = set(build(MedNeXtConfig(size="M")).state_dict())
    assert encoder == {key for key in keys if re.match(r"stem|enc_block|down|bottleneck", key)}


def test_a_whole_state_dict_of_the_original_loads_and_the_encoder_is_shared():
    """The original saves `dummy_tensor` with the weights: a strict load takes it."""
    encoder = MedNeXtEncoder(MedNeXtConfig(size="S"))
    network = MedNeXt(encoder, 2)
    state = {key: torch.randn_like(value) for key, value in network.state_dict().items()}
    network.load_state_dict(state, strict=True)
    assert torch.equal(encoder.bottleneck[1].conv3.weight, state["bottleneck.1.conv3.weight"])
    assert {id(p) for p in network.encoder_parameters()} == {id(p) for p in encoder.parameters()}
    assert "dummy_tensor" not in dict(network.named_parameters())


def test_stages_lead_through_the_encoder():
    encoder = MedNeXtEncoder(MedNeXtConfig(size="S", in_channels=2))
    stem, stages = encoder.stages()
    x = torch.randn(1, 2, 20, 18, 24)
    with torch.no_grad():
        expected, y = encoder(x), stem(x)
        for (blocks, down), feature in zip(stages, expected, strict=True):
            assert all(type(block) is MedNeXtBlock for block in blocks)
            y = blocks(y)
            assert torch.equal(y, feature)
            if down is not None:
                assert type(down) is MedNeXtDownBlock
                y = down(y)
    assert stages[-1][1] is None


def restated(state, x, kernel):
    """MedNeXt in plain functional code: all logits, full resolution first. The kernel's centre slice is never taken."""

    def conv(x, key, stride=1, transposed=False):
        weight, bias = state[f"{key}.weight"], state[f"{key}.bias"]
        groups = x.shape[1] if weight.shape[1] == 1 and weight.shape[0] == x.shape[1] > 1 else 1
        run = F.conv_transpose3d if transposed else F.conv3d
        return run(x, weight, bias, stride, padding=weight.shape[-1] // 2, groups=groups)

    def expand(x, key):
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        var = (x - mean).square().mean(dim=(2, 3, 4), keepdim=True)
        scale, shift = (state[f"{key}.norm.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
        x = conv((x - mean) / torch.sqrt(var + 1e-5) * scale + shift, f"{key}.conv2")
        return conv(0.5 * x * (1 + torch.erf(x / math.sqrt(2))), f"{key}.conv3")

    def stage(x, key):
        for block in range(len([k for k in state if re.fullmatch(rf"{key}\.\d+\.conv1\.weight", k)])):
            x = x + expand(conv(x, f"{key}.{block}.conv1"), f"{key}.{block}")
        return x

    assert state["down_0.conv1.weight"].shape[2:] == (kernel,) * 3
    x = conv(x, "stem")
    skips = []
    for level in range(4):
        skips.append(stage(x, f"enc_block_{level}"))
        key = f"down_{level}"
        x = expand(conv(skips[-1], f"{key}.conv1", 2), key) + conv(skips[-1], f"{key}.res_conv", 2)
    x = stage(x, "bottleneck")
    logits = [F.conv_transpose3d(x, state["out_4.conv_out.weight"], state["out_4.conv_out.bias"])]
    for level in reversed(range(4)):
        key, skip = f"up_{level}", skips[level]
        up = F.pad(expand(conv(x, f"{key}.conv1", 2, True), key), (1, 0) * 3)
        up = up + F.pad(conv(x, f"{key}.res_conv", 2, True), (1, 0) * 3)
        d, h, w = skip.shape[2:]
        x = stage(skip + up[:, :, -d:, -h:, -w:], f"dec_block_{level}")
        logits.append(F.conv_transpose3d(x, state[f"out_{level}.conv_out.weight"], state[f"out_{level}.conv_out.bias"]))
    return logits[::-1]


def random_network(size, kernel, in_channels=2):
    network = MedNeXt(MedNeXtEncoder(MedNeXtConfig(size=size, kernel=kernel, in_channels=in_channels)), 3, True)
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=0.5)
    return network.double()


VOLUME, ODD, THIN, IMAGE, ODD_IMAGE = (16, 16, 32), (17, 22, 19), (2, 33, 16), (1, 32, 48), (1, 37, 30)


@pytest.mark.parametrize(
    ("size", "kernel", "shape"),
    [
        *(("S", 3, shape) for shape in (VOLUME, ODD, THIN, IMAGE, ODD_IMAGE)),
        *(("B", 5, shape) for shape in (VOLUME, ODD, IMAGE, ODD_IMAGE)),
        ("M-like", 3, VOLUME),
        ("M-like", 5, IMAGE),
    ],
)
def test_forward_equals_the_functional_restatement(size, kernel, shape, monkeypatch):
    """On sizes that are no multiple of 16, the original's padding, cut to the skip from the front."""
    if size == "M-like":
        size = "M"
        monkeypatch.setitem(mednext.RATIOS, "M", (1, 2, 3, 2, 1, 2, 2, 3, 2))
        monkeypatch.setitem(mednext.BLOCKS, "M", (1, 2, 1, 3, 1, 2, 1, 1, 2))
    network = random_network(size, kernel)
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    with torch.no_grad():
        ours, plain = network(x), restated(network.state_dict(), x, kernel)
        network.deep_supervision = False
        assert torch.equal(network(x), ours[0])
    assert ours[0].shape == (1, 3, *shape)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(16, 32, 16), (1, 34, 48)])
def test_gradients_equal_those_of_the_restatement(shape):
    network = random_network("S", 3)
    x = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    named = dict(network.named_parameters())
    inputs = (x, *named.values())
    probes = [torch.randn_like(y) for y in network(x)]
    ours = torch.autograd.grad(sum((y * p).sum() for y, p in zip(network(x), probes, strict=True)), inputs)
    logits = restated(named, x, 3)
    plain = torch.autograd.grad(sum((y * p).sum() for y, p in zip(logits, probes, strict=True)), inputs)
    for name, one, other in zip(("x", *named), ours, plain, strict=True):
        scale = other.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * scale + 1e-10, msg=name)


def monai_key(key):
    """Our name of one of MONAI's parameters."""
    parts = key.split(".")
    place = {"enc_stages": "enc_block_{}", "down_blocks": "down_{}"}.get(parts[0])
    if place:
        return ".".join((place.format(parts[1]), *parts[2:]))
    if parts[0] in ("up_blocks", "dec_stages"):
        name = "up" if parts[0] == "up_blocks" else "dec_block"
        return ".".join((f"{name}_{3 - int(parts[1])}", *parts[2:]))
    if parts[0] == "out_blocks":
        return ".".join((f"out_{4 - int(parts[1])}", *parts[2:]))
    return key


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("is_2d", [False, True])
def test_size_s_equals_monais_network(kernel, is_2d):
    """In S alone MONAI's expansion ratios are the original's; its 2D network gets the centre slices of our weights."""
    ensure_torchvision()  # before anything imports monai
    from monai.networks.nets import MedNeXtS

    network = random_network("S", kernel, in_channels=1)
    options = {"spatial_dims": 2 if is_2d else 3, "kernel_size": kernel, "deep_supervision": True}
    theirs = MedNeXtS(in_channels=1, out_channels=3, **options).double().train()
    ours = network.state_dict()
    weights = {key: ours[monai_key(key)] for key in theirs.state_dict()}
    assert len({monai_key(key) for key in weights}) == len(ours) - 1 == len(weights)
    if is_2d:
        weights = {k: v[:, :, v.shape[2] // 2] if v.dim() == 5 else v for k, v in weights.items()}
    theirs.load_state_dict(weights)
    x = torch.randn(2, 1, *(IMAGE if is_2d else VOLUME), dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x[:, :, 0] if is_2d else x)
        for one, other in zip(network(x), expected, strict=True):
            torch.testing.assert_close(one[:, :, 0] if is_2d else one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_depth_one_is_the_3d_convolution_gradients_included(kernel, stride, transposed):
    if transposed:
        conv, run = DepthFreeConvTranspose3d, F.conv_transpose3d
    else:
        conv, run = DepthFreeConv3d, F.conv3d
    flat = conv(4, 4, kernel, stride, kernel // 2, groups=4).double()
    x = torch.randn(2, 4, 1, 7, 6, dtype=torch.float64, requires_grad=True)
    plain = run(x, flat.weight, flat.bias, stride, kernel // 2, groups=4)
    torch.testing.assert_close(flat(x), plain, rtol=1e-12, atol=1e-12)
    probe, inputs = torch.randn_like(plain), (x, flat.weight, flat.bias)
    ours = torch.autograd.grad((flat(x) * probe).sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad((plain * probe).sum(), inputs), rtol=1e-12, atol=1e-12)


def test_bfloat16_gradients_of_depthwise_convolutions():
    """The error of oneDNN that STU-Net's convolution steps around must not show on depthwise ones of any depth."""
    for kernel, stride, depth in ((k, s, d) for k in (3, 5) for s in (1, 2) for d in (1, 2, 3, 4)):
        for conv in (DepthFreeConv3d, DepthFreeConvTranspose3d):
            layer = conv(64, 64, kernel, stride, kernel // 2, groups=64)
            x = torch.randn(2, 64, depth, 4, 6)
            exact = layer(x)
            probe = torch.randn_like(exact)
            gradient = torch.autograd.grad((exact * probe).sum(), layer.weight)[0]
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(x)
            ours = torch.autograd.grad((y * probe).sum(), layer.weight)[0]
            assert (ours - gradient).abs().max() < 0.03 * gradient.abs().max(), (conv, kernel, stride, depth)


def test_up_block_fits_even_and_odd_skips():
    up = MedNeXtUpBlock(6, 3, 2, 3)
    x = torch.randn(1, 6, 1, 3, 4)
    with torch.no_grad():
        assert up(x, torch.Size((1, 5, 8))).shape == (1, 3, 1, 5, 8)
        even = up(x, torch.Size((2, 6, 8)))
        assert not even[:, :, 0].any()
        assert not even[:, :, :, 0].any()
        assert torch.equal(even[:, :, 1:, 1:, 1:], up(x, torch.Size((1, 5, 7))))


def test_features_have_the_promised_channels_strides_and_pooling():
    encoder = build(MedNeXtConfig(size="S"))
    for shape in (VOLUME, IMAGE):
        x = torch.randn(2, 1, *shape)
        valid = torch.zeros(2, 1, *shape, dtype=torch.bool)
        valid[..., :16] = True
        with torch.no_grad():
            features = encoder(x)
            torch.testing.assert_close(encoder.pooled(x), features[-1].mean(dim=(2, 3, 4)))
            torch.testing.assert_close(encoder.pooled(x, valid), features[-1][..., :1].mean(dim=(2, 3, 4)))
        assert tuple(f.shape[1] for f in features) == encoder.feature_channels == (32, 64, 128, 256, 512)
        strides = encoder.feature_strides(is_2d=shape[0] == 1)
        assert strides[-1] == encoder.size_divisor(is_2d=shape[0] == 1)
        for feature, stride in zip(features, strides, strict=True):
            assert tuple(feature.shape[2:]) == tuple(n // s for n, s in zip(shape, stride, strict=True))
    assert encoder.pooled_dim == 512


@pytest.mark.parametrize(
    ("shape", "smallest"), [((16, 16, 16), (17, 16, 16)), ((1, 16, 16), (1, 16, 17)), ((1, 9, 8), (1, 17, 8))]
)
def test_a_scan_that_leaves_one_voxel_is_refused_and_the_size_named_is_enough(shape, smallest):
    network = MedNeXt(MedNeXtEncoder(MedNeXtConfig(size="S")), 2)
    encoder = build(MedNeXtConfig(size="S"))
    allowed = "D >= 17 or H >= 17 or W >= 17" if shape[0] > 1 else "H >= 17 or W >= 17"
    with pytest.raises(UserError, match=f"too small for MedNeXt .*{allowed}; take a larger crop$"):
        encoder.check_input(shape)
    encoder.check_input(smallest)
    with torch.no_grad():
        assert network(torch.randn(1, 1, *smallest)).shape == (1, 2, *smallest)


def test_the_config_is_checked_and_travels_with_a_release(tmp_path):
    config = MedNeXtConfig(size="S", kernel=5, in_channels=3)
    encoder = build(config)
    save_release(tmp_path, {"encoder": encoder.state_dict()}, ReleaseInfo(backbone=config), [])
    loaded, info = load_encoder(tmp_path)
    assert info.backbone == loaded.config == config
    x = torch.randn(1, 3, 1, 32, 20)
    assert torch.equal(loaded.pooled(x), encoder.pooled(x))
    for wrong in ({"kernel": 7}, {"size": "H"}, {"strides": ()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MedNeXtConfig.model_validate(wrong)
