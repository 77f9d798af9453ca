"""SparK's own parts: the 2D run of the 3D decoder, densifying, and the blocks it accepts."""

import pytest
import torch
import torch.nn.functional as F
from unwritten import leave_behind

from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.objectives.light_decoder import LightDecoder, UpConv3d
from scanfoundry.pretrain.objectives.spark import Densify, SparkConfig
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.encoders import packed_features


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 2)])
def test_up_convolution_multiplies_by_the_stride_and_on_depth_one_is_the_mean_of_the_slices(stride):
    up = UpConv3d(4, stride).double()
    x = torch.randn(2, 4, 3, 4, 5, dtype=torch.float64)
    assert tuple(up(x).shape[2:]) == (3 * stride[0], 4 * stride[1], 5 * stride[2])
    flat = torch.randn(2, 4, 1, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(up(flat, flat=True), up(flat).mean(dim=2, keepdim=True), rtol=1e-12, atol=1e-12)


def test_decoder_adds_a_skip_at_every_level_given():
    decoder = LightDecoder(64, ((2, 2, 2),) * 3, 1).double()
    skips = [torch.randn(1, 64 >> i, 2 << i, 3 << i, 2 << i, dtype=torch.float64, requires_grad=True) for i in range(3)]
    for used in (1, 2, 3):
        out = decoder(skips[:used], flat=False)
        assert out.shape == (1, 1, 16, 24, 16)
        reached = torch.autograd.grad(out.square().sum(), skips, allow_unused=True)
        assert [g is not None and bool(g.any()) for g in reached] == [i < used for i in range(3)]


@pytest.mark.parametrize(("deepest", "width"), [(True, 32), (True, 64), (False, 64)])
def test_densify_fills_holes_with_the_token_and_projects(deepest, width):
    fill = Densify(32, width, deepest).double()
    mask = torch.rand(2, 1, 2, 3, 4) > 0.5  # blocks of one voxel
    x = torch.randn(2, 32, 2, 3, 4, dtype=torch.float64)
    filled = torch.empty_like(x)
    for b in range(2):
        seen = mask[b, 0]
        for c in range(32):
            values = x[b, c][seen]
            filled[b, c][seen] = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
            filled[b, c][~seen] = fill.mask_token[0, c, 0, 0, 0].detach()
    if deepest and width == 32:
        expected = filled
        assert isinstance(fill.project, torch.nn.Identity)
    else:
        assert fill.project.kernel_size == ((1, 1, 1) if deepest else (3, 3, 3))
        expected = F.conv3d(filled, fill.project.weight, fill.project.bias, padding=0 if deepest else 1)
    blocks = ActiveBlocks(mask)
    torch.testing.assert_close(fill(blocks.pack(x), blocks), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"block_3d": (16, 16, 24)}, r"objective\.block_3d \(16, 16, 24\).*total stride \(16, 16, 16\)"),
        ({"block_2d": (8, 16)}, r"objective\.block_2d \(8, 16\).*total stride \(16, 16\)"),
    ],
)
def test_blocks_that_the_strides_do_not_divide_are_refused(blocks, message):
    encoder = build(STUNetConfig(size="S", strides=((2, 2, 2),) * 4 + ((1, 1, 1),)))
    with pytest.raises(UserError, match=message):
        SparkConfig(**{"block_2d": (16, 16), "block_3d": (16, 16, 16), **blocks}).build(encoder)


def test_the_last_level_of_a_resenc_and_its_shortcuts_learn():
    encoder = build(ResEncConfig(features=(4, 6, 8), blocks=(1, 2, 1), strides=((2, 2, 2), (1, 2, 2))))
    objective = SparkConfig(block_2d=(4, 4), block_3d=(4, 4, 4), decoder_width=32, skip_levels=3).build(encoder)
    mask = torch.tensor([[True, False]]).view(1, 1, 1, 1, 2)
    for depth in (4, 1):
        objective.zero_grad()
        objective.predict(torch.randn(1, 1, depth, 8, 8), mask.expand(1, 1, 1, 2, 2)).square().sum().backward()
        idle = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}
        assert idle == set()


def test_a_primus_is_told_what_it_can_do():
    with pytest.raises(UserError, match=r"'resenc'\); for 'vit' and 'primus' take 'mae'"):
        SparkConfig().build(build(PrimusConfig(size="S")))


def test_skip_levels_reach_the_decoder():
    encoder = build(STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3))
    objective = SparkConfig(block_2d=(4, 4), block_3d=(4, 4, 4), decoder_width=32, skip_levels=5).build(encoder)
    mask = torch.tensor([[True, False]]).view(1, 1, 1, 1, 2)
    objective.predict(torch.randn(1, 1, 4, 8, 8), mask.expand(1, 1, 1, 2, 2)).square().sum().backward()
    assert len(objective.densify) == 5
    for fill in objective.densify:
        assert fill.mask_token.grad is not None
        assert fill.mask_token.grad.any()


@pytest.mark.parametrize("shape", [(4, 8, 16), (1, 8, 16)])
def test_the_own_decoder_reads_every_level_with_tokens_in_its_holes(shape):
    """By loops: the encoder's packed features laid out in space; the decoder and head are the backbone's own."""
    backbone = ResEncConfig(features=(4, 6, 8), blocks=(1, 2, 1), strides=((2, 2, 2), (1, 2, 2)))
    config = SparkConfig(block_2d=(4, 8), block_3d=(4, 4, 8), decoder="own")
    objective = config.build(build(backbone)).double()
    mask = torch.tensor([[True, False, False, True], [False, False, True, False]]).view(2, 1, 1, 2, 2)
    x = torch.randn(2, 1, *shape, dtype=torch.float64)
    features = packed_features(objective.encoder, x, ActiveBlocks(~mask))
    dense = []
    for packed, fill in zip(features, objective.fill, strict=True):
        d, h, w, channels = packed.shape[1:]
        level = fill.mask_token.detach().view(1, -1, 1, 1, 1).expand(2, channels, d, 2 * h, 2 * w).clone()
        for number, (b, _, i, j) in enumerate((~mask[:, 0]).nonzero().tolist()):
            level[b, :, :, i * h : (i + 1) * h, j * w : (j + 1) * w] = packed[number].movedim(-1, 0)
        dense.append(level)
    expected = objective.head(objective.decoder.decode(dense)[0])
    torch.testing.assert_close(objective.predict(x, mask), expected, rtol=1e-10, atol=1e-10)
    objective.predict(x, mask).square().sum().backward()
    assert all(p.grad is not None for p in objective.parameters())
    whole = objective.encoder.decoder(1)
    wanted = {key for part, key in map(whole.part_of, whole.state_dict()) if part == "decoder"}
    assert objective.own_decoder
    assert objective.decoder.state_dict().keys() == wanted


def test_sizes_of_the_light_decoder_are_refused_beside_the_own_one():
    for option in ({"decoder_width": 64}, {"skip_levels": 2}):
        with pytest.raises(ValueError, match="for decoder 'light'"):
            SparkConfig(decoder="own", **option)
    config = SparkConfig(decoder="own")
    assert SparkConfig(**config.model_dump()) == config


@pytest.mark.parametrize("size", [(2, 4, 1), (3, 2, 1), (4, 4, 1), (1, 4, 1), (2, 4, 2)])
def test_bfloat16_of_a_single_column(size):
    """The gradient of a plain transposed convolution is left-over memory there, see tests/backbones/test_layers.py."""
    torch.manual_seed(0)
    up, flat = UpConv3d(16, (2, 2, 2)), size[0] == 1
    x = torch.randn(2, 16, *size, requires_grad=True)
    exact = up(x, flat)
    probe = torch.randn_like(exact)
    wanted = torch.autograd.grad((exact * probe).sum(), (x, up.weight))
    for value in (torch.nan, 1e4, torch.nan):
        leave_behind(value)
        with torch.autocast("cpu", torch.bfloat16):
            y = up(x, flat)
        assert y.shape == exact.shape
        leave_behind(value)
        ours = torch.autograd.grad((y * probe).sum(), (x, up.weight))
        for one, other in zip((y, *ours), (exact, *wanted), strict=True):
            assert (one.float() - other).abs().max() <= 0.03 * other.abs().max()
