"""ResEnc against a published file's size, the original's key names and a plain functional restatement."""

import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig, ResEncEncoder, ShortcutPool
from scanfoundry.configs.errors import UserError

SMALL = ResEncConfig(
    in_channels=2, features=(4, 6, 8, 8), blocks=(2, 1, 2, 1), strides=((2, 2, 2), (1, 2, 2), (2, 2, 1))
)


def test_the_parameters_are_those_of_the_published_file():
    """nnFoundationCNN's checkpoint, a whole ResEnc-L U-Net in float32, is 409,579,442 bytes in 956 named tensors.

    448 of them are the encoder's, each under two names. The decoder (one convolution per level, one output channel)
    is counted here; what remains of the file is names and records.
    """
    with torch.device("meta"):
        encoder = build(ResEncConfig())
    count = sum(p.numel() for p in encoder.parameters())
    features, decoder = (32, 64, 128, 256, 320, 320), 0
    for fine, coarse in pairwise(features):
        transposed, conv = coarse * fine * 8 + fine, 2 * fine * fine * 27 + fine
        decoder += transposed + conv + 2 * fine + (fine + 1)  # up, convolution, norm, head
    assert count == 90_296_576
    assert 0 < 409_579_442 - 4 * (count + decoder) < 956 * 256
    assert len(encoder.state_dict()) == 448 // 2


def test_key_names_are_the_originals():
    with torch.device("meta"):
        keys = set(build(ResEncConfig()).state_dict())
    part = r"(conv|norm)\.(weight|bias)"
    pattern = re.compile(rf"stem\.convs\.0\.{part}|stages\.[0-5]\.blocks\.[0-5]\.(conv1|conv2|skip\.1)\.{part}")
    assert [key for key in keys if not pattern.fullmatch(key)] == []
    skips = {key for key in keys if ".skip." in key}
    # none where nothing changes (0) or only the size does (5); a projection has no bias of its own
    assert skips == {
        f"stages.{i}.blocks.0.skip.1.{p}" for i in (1, 2, 3, 4) for p in ("conv.weight", "norm.weight", "norm.bias")
    }
    assert {key.split(".")[3] for key in keys if key.startswith("stages.3.")} == set("012345")


def restated(state, x, config):
    """ResEnc in plain functional code, all levels. 2D as padded 3D of depth 1."""

    def conv_norm(x, key, stride=(1, 1, 1)):
        weight = state[f"{key}.conv.weight"]
        x = F.conv3d(x, weight, state.get(f"{key}.conv.bias"), stride, padding=weight.shape[-1] // 2)
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        var = (x - mean).square().mean(dim=(2, 3, 4), keepdim=True)
        scale, shift = (state[f"{key}.norm.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    def leaky(x):
        return torch.where(x > 0, x, 0.01 * x)

    def averaged(x, stride):
        for axis, step in enumerate(stride, start=2):
            x = torch.cat([part.mean(dim=axis, keepdim=True) for part in x.split(step, dim=axis)], dim=axis)
        return x

    x, levels = leaky(conv_norm(x, "stem.convs.0")), []
    for level, (count, stride) in enumerate(zip(config.blocks, ((1, 1, 1), *config.strides), strict=True)):
        for block in range(count):
            name, step = f"stages.{level}.blocks.{block}", stride if block == 0 else (1, 1, 1)
            y = conv_norm(leaky(conv_norm(x, f"{name}.conv1", step)), f"{name}.conv2")
            x = averaged(x, step)
            for part in (f"{name}.skip.0", f"{name}.skip.1"):
                if f"{part}.conv.weight" in state:
                    x = conv_norm(x, part)
            x = leaky(y + x)
        levels.append(x)
    return levels


@pytest.mark.parametrize(
    "shape", [(8, 16, 16), (1, 16, 24), (7, 9, 13), (1, 11, 6)], ids=["3D", "2D", "3D odd", "2D odd"]
)
def test_forward_equals_the_functional_restatement(shape):
    encoder = build(SMALL).double()
    for name, parameter in encoder.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=0.5)
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    with torch.no_grad():
        ours, plain = encoder(x), restated(encoder.state_dict(), x, SMALL)
        torch.testing.assert_close(encoder.pooled(x), plain[-1].mean(dim=(2, 3, 4)), rtol=1e-10, atol=1e-10)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_on_even_sizes_the_shortcut_is_the_originals_pooling():
    x = torch.randn(2, 3, 4, 6, 8)
    for stride in ((2, 2, 2), (1, 2, 2), (2, 1, 2)):
        assert torch.equal(ShortcutPool(stride)(x), nn.AvgPool3d(stride, stride)(x))


def test_features_have_the_promised_channels_and_strides():
    encoder = build(SMALL)
    for shape in ((8, 16, 16), (1, 16, 24)):
        with torch.no_grad():
            features = encoder(torch.randn(1, 2, *shape))
        assert tuple(f.shape[1] for f in features) == encoder.feature_channels == (4, 6, 8, 8)
        strides = encoder.feature_strides(is_2d=shape[0] == 1)
        assert strides[-1] == encoder.size_divisor(is_2d=shape[0] == 1) == ((1 if shape[0] == 1 else 4), 8, 4)
        for feature, stride in zip(features, strides, strict=True):
            assert tuple(feature.shape[2:]) == tuple(n // s for n, s in zip(shape, stride, strict=True))
    assert encoder.pooled_dim == 8


@pytest.mark.parametrize(("shape", "smallest"), [((4, 8, 4), (5, 8, 4)), ((1, 8, 4), (1, 8, 5))])
def test_a_scan_that_leaves_one_voxel_is_refused_and_the_size_named_is_enough(shape, smallest):
    encoder = ResEncEncoder(SMALL)
    allowed = "D >= 5 or H >= 9 or W >= 5" if shape[0] > 1 else "H >= 9 or W >= 5"
    with pytest.raises(UserError, match=allowed):
        encoder.check_input(shape)
    encoder.check_input(smallest)
    with torch.no_grad():
        assert encoder(torch.randn(1, 2, *smallest))[-1].isfinite().all()


def test_levels_are_checked_and_travel_in_the_config():
    assert ResEncConfig.model_validate_json(SMALL.model_dump_json()) == SMALL
    with pytest.raises(
        ValueError, match="6 levels of features need 6 numbers of blocks and 5 strides: there are 5 and 5"
    ):
        ResEncConfig(blocks=(1, 3, 4, 6, 6))
    with pytest.raises(ValueError, match="there are 6 and 6"):
        ResEncConfig(strides=((2, 2, 2),) * 6)
    with pytest.raises(ValueError, match="features"):
        ResEncConfig(features=(32,), blocks=(1,), strides=())
    with pytest.raises(ValueError, match="strides"):
        ResEncConfig(strides=((3, 2, 2),) * 5)
