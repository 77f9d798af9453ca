"""STU-Net against the published counts, the original's key names and a plain functional restatement."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import WIDTHS_AND_DEPTHS, STUNet, STUNetConfig, STUNetEncoder
from scanfoundry.configs.errors import UserError

RELEASED = ((2, 2, 2),) * 4 + ((1, 1, 2),)  # strides of the authors' weights
SMALL = ((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize(
    ("size", "whole", "encoder", "tensors"),
    [
        ("S", 14_596_941, 7_185_744, 130),
        ("B", 58_262_669, 28_731_552, 130),
        ("L", 440_302_605, 246_968_256, 218),
        ("H", 1_457_326_221, 852_780_384, 306),
    ],
)
def test_parameter_counts_are_the_published_ones(size, whole, encoder, tensors):
    with torch.device("meta"):
        contracting = build(STUNetConfig(size=size))
        network = STUNet(contracting, num_classes=105)
    assert sum(p.numel() for p in network.parameters()) == whole
    assert sum(p.numel() for p in contracting.parameters()) == encoder
    assert len(network.state_dict()) == tensors


def test_key_names_are_the_originals():
    with torch.device("meta"):
        encoder = STUNetEncoder(STUNetConfig(size="L"))
        keys = set(STUNet(encoder, num_classes=2).state_dict())
    block = r"(conv1|norm1|conv2|norm2|conv3)\.(weight|bias)"
    pattern = re.compile(
        rf"conv_blocks_context\.[0-5]\.[01]\.{block}|conv_blocks_localization\.[0-4]\.[01]\.{block}"
        r"|upsample_layers\.[0-4]\.conv\.(weight|bias)|seg_outputs\.[0-4]\.(weight|bias)"
    )
    assert [key for key in keys if not pattern.fullmatch(key)] == []
    assert {key for key in keys if key.startswith("conv_blocks_context")} == set(encoder.state_dict())
    assert "conv_blocks_context.3.0.conv3.weight" in keys
    assert "conv_blocks_context.3.1.conv3.weight" not in keys  # later blocks have an identity shortcut


def restated(state, x, strides, depth):
    """STU-Net in plain functional code: every logit, full resolution first. 2D as padded 3D of depth 1."""

    def conv(x, key, stride=(1, 1, 1)):
        weight = state[f"{key}.weight"]
        return F.conv3d(x, weight, state[f"{key}.bias"], stride, padding=weight.shape[-1] // 2)

    def norm(x, key):
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        var = (x - mean).square().mean(dim=(2, 3, 4), keepdim=True)
        scale, shift = (state[f"{key}.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    def leaky(x):
        return torch.where(x > 0, x, 0.01 * x)

    def stage(x, key, stride=(1, 1, 1)):
        for block in range(depth):
            name = f"{key}.{block}"
            y = leaky(norm(conv(x, f"{name}.conv1", stride if block == 0 else (1, 1, 1)), f"{name}.norm1"))
            y = norm(conv(y, f"{name}.conv2"), f"{name}.norm2")
            if block == 0:
                x = F.conv3d(x, state[f"{name}.conv3.weight"], state[f"{name}.conv3.bias"], stride)
            x = leaky(y + x)
        return x

    skips = []
    for level, stride in enumerate(((1, 1, 1), *strides)):
        x = stage(x, f"conv_blocks_context.{level}", stride)
        skips.append(x)
    logits = []
    for level, (skip, stride) in enumerate(zip(skips[-2::-1], strides[::-1], strict=True)):
        for axis, step in enumerate(stride, start=2):
            if skip.shape[axis] > 1:
                x = x.repeat_interleave(step, dim=axis)
        x = conv(x, f"upsample_layers.{level}.conv")
        x = stage(torch.cat((x, skip), dim=1), f"conv_blocks_localization.{level}")
        logits.append(conv(x, f"seg_outputs.{level}"))
    return logits[::-1]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("shape", "strides"),
    [((8, 8, 16), SMALL), ((1, 16, 24), SMALL), ((1, 32, 64), RELEASED)],
    ids=["3D", "2D", "2D-released-strides"],
)
def test_forward_equals_the_functional_restatement(depth, shape, strides, monkeypatch):
    monkeypatch.setitem(WIDTHS_AND_DEPTHS, "S", (8, depth))
    encoder = STUNetEncoder(STUNetConfig(size="S", in_channels=2, strides=strides))
    network = STUNet(encoder, num_classes=3, deep_supervision=True).double()
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=0.5)
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    with torch.no_grad():
        ours = network(x)
        plain = restated(network.state_dict(), x, strides, depth)
        network.deep_supervision = False
        assert torch.equal(network(x), ours[0])
    assert ours[0].shape == (2, 3, *shape)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kernel", "stride"), [(3, (1, 1, 1)), (3, (2, 2, 1)), (1, (2, 1, 2))])
def test_depth_one_is_the_padded_3d_convolution_gradients_included(kernel, stride):
    flat = DepthFreeConv3d(3, 5, kernel, stride, kernel // 2).double()
    x = torch.randn(2, 3, 1, 6, 9, dtype=torch.float64, requires_grad=True)
    padded = F.conv3d(x, flat.weight, flat.bias, stride, kernel // 2)
    torch.testing.assert_close(flat(x), padded, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(padded)
    inputs = (x, flat.weight, flat.bias)
    ours = torch.autograd.grad((flat(x) * probe).sum(), inputs)
    plain = torch.autograd.grad((padded * probe).sum(), inputs)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_features_have_the_promised_channels_strides_and_pooling():
    encoder = STUNetEncoder(STUNetConfig(size="S", strides=SMALL))
    for shape in ((8, 8, 16), (1, 16, 24)):
        x = torch.randn(1, 1, *shape)
        with torch.no_grad():
            features = encoder(x)
            torch.testing.assert_close(encoder.pooled(x), features[-1].mean(dim=(2, 3, 4)))
        assert tuple(f.shape[1] for f in features) == encoder.feature_channels
        strides = encoder.feature_strides(is_2d=shape[0] == 1)
        assert strides[-1] == encoder.size_divisor(is_2d=shape[0] == 1)
        for feature, stride in zip(features, strides, strict=True):
            assert tuple(feature.shape[2:]) == tuple(n // s for n, s in zip(shape, stride, strict=True))
    assert encoder.pooled_dim == encoder.feature_channels[-1] == 256


@pytest.mark.parametrize(
    ("shape", "smallest"),
    [((32, 32, 32), (33, 32, 32)), ((1, 32, 32), (1, 32, 33)), ((1, 16, 8), (1, 33, 8))],
)
def test_a_scan_that_leaves_one_voxel_is_refused_and_the_size_named_is_enough(shape, smallest):
    encoder = STUNetEncoder(STUNetConfig(size="S"))
    allowed = "D >= 33 or H >= 33 or W >= 33" if shape[0] > 1 else "H >= 33 or W >= 33"
    with pytest.raises(UserError, match=allowed):
        encoder.check_input(shape)
    encoder.check_input(smallest)
    with torch.no_grad():
        assert encoder(torch.randn(1, 1, *smallest))[-1].isfinite().all()


def test_strides_are_checked_and_travel_in_the_config():
    config = STUNetConfig(size="S", strides=RELEASED)
    assert STUNetConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="strides"):
        STUNetConfig(strides=((3, 2, 2),) * 5)
    with pytest.raises(ValueError, match="strides"):
        STUNetConfig(strides=((2, 2, 2),) * 6)
