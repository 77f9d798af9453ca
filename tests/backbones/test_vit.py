"""The ViT's positions against MAE's loops, its kept tokens, its shapes on any grid."""

import math

import pytest
import torch

from scanforge.backbones.positions import sincos_positions
from scanforge.backbones.registry import BACKBONES, build
from scanforge.backbones.vit import WIDTH_DEPTH_HEADS, ViTConfig
from scanforge.configs.errors import UserError

SHAPES = [(1, 32, 48), (1, 80, 16), (16, 8, 24), (8, 24, 32)]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build(ViTConfig(size="Ti", in_channels=2)).double().eval()


def test_trunk_counts_are_timms():
    """timm's vit_base_patch16_224 has 85,798,656 parameters without head; ours adds no learned positions."""
    with torch.device("meta"):
        base = build(ViTConfig(size="B", in_channels=3))
    dim = WIDTH_DEPTH_HEADS["B"][0]
    extra_3d = dim * 3 * 8**3 + dim
    positions = 197 * dim
    assert sum(p.numel() for p in base.parameters()) == 85_798_656 - positions + extra_3d
    assert {"cls_token", "norm.weight", "blocks.0.attn.qkv.bias", "blocks.11.mlp.fc2.weight"} <= set(base.state_dict())


def mae_2d_positions(height, width, dim):
    """MAE's table by loops: half of the columns for w, half for h, each [sin | cos]."""
    quarter = dim // 4
    rows = []
    for y in range(height):
        for x in range(width):
            row = []
            for place in (x, y):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def test_2d_positions_are_maes():
    torch.testing.assert_close(sincos_positions((1, 5, 7), 192, True), mae_2d_positions(5, 7, 192))


@pytest.mark.parametrize("dim", [192, 1024, 1280, 37])
def test_3d_positions_factorise_over_w_h_d(dim):
    grid = (2, 3, 4)
    table = sincos_positions(grid, dim, False)
    assert table.shape == (24, dim)
    assert len(table.unique(dim=0)) == 24
    pairs = [(dim // 2 + 2 - order) // 3 for order in range(3)]  # evenly, left-overs to w, then h
    assert sum(pairs) == dim // 2
    for row, place in enumerate((d, h, w) for d in range(2) for h in range(3) for w in range(4)):
        expected = []
        for axis, count in zip((2, 1, 0), pairs, strict=True):
            angles = [place[axis] / 10000 ** (i / count) for i in range(count)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        expected += [0.0] * (dim % 2)
        torch.testing.assert_close(table[row], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_feature_map_on_any_grid(encoder, shape):
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    with torch.no_grad():
        (feature,) = encoder(x)
        pooled = encoder.pooled(x)
    (stride,) = encoder.feature_strides(is_2d=shape[0] == 1)
    assert tuple(feature.shape) == (2, 192, *(n // s for n, s in zip(shape, stride, strict=True)))
    torch.testing.assert_close(pooled, feature.mean(dim=(2, 3, 4)))


@pytest.mark.parametrize("shape", [(1, 32, 48), (16, 8, 24)])
def test_patch_tokens_follow_d_h_w_order(encoder, shape):
    """A change in one patch changes the embedding of that token alone."""
    patch = encoder.patch(shape[0] == 1)
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    before = encoder.embed(x)
    d, h, w = encoder.grid(shape)
    order = [(i, j, k) for i in range(d) for j in range(h) for k in range(w)]
    for token, index in enumerate(order):
        low = [i * p for i, p in zip(index, patch, strict=True)]
        changed = x.clone()
        changed[0, 0, low[0], low[1], low[2]] += 1
        moved = (encoder.embed(changed) != before).any(dim=-1)[0]
        assert moved.nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize("shape", [(1, 32, 48), (16, 8, 24)])
def test_kept_tokens_equal_the_trunk_on_those_tokens_alone(encoder, shape):
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    keep = torch.tensor([[0, 3, 5], [4, 1, 2]])
    with torch.no_grad():
        ours = encoder.forward_tokens(x, keep)
        for sample in range(2):
            chosen = encoder.embed(x)[sample : sample + 1, keep[sample]]
            tokens = torch.cat((encoder.cls_token, chosen), dim=1)
            for block in encoder.blocks:
                tokens = block(tokens)
            torch.testing.assert_close(ours[sample : sample + 1], encoder.norm(tokens), rtol=1e-12, atol=1e-12)
        everything = torch.arange(6).expand(2, -1)
        torch.testing.assert_close(encoder.forward_tokens(x, everything), encoder.forward_tokens(x))


def test_images_and_volumes_share_the_trunk():
    encoder = build(ViTConfig(size="Ti"))
    for shape, own, other in (
        ((1, 32, 32), "patch_embed_2d", "patch_embed_3d"),
        ((8, 16, 16), "patch_embed_3d", "patch_embed_2d"),
    ):
        encoder.zero_grad()
        encoder.pooled(torch.randn(1, 1, *shape)).square().sum().backward()
        used = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
        assert f"{own}.weight" in used
        assert f"{other}.weight" not in used
        assert {"blocks.0.attn.qkv.weight", "blocks.11.mlp.fc2.weight"} <= used


@pytest.mark.parametrize(("shape", "allowed"), [((1, 40, 32), "1, 16, 16"), ((12, 16, 16), "8, 8, 8")])
def test_sizes_that_do_not_fill_the_patches_are_refused(encoder, shape, allowed):
    with pytest.raises(UserError, match=rf"multiple of \({allowed}\)"):
        encoder.check_input(shape)
    with pytest.raises(UserError, match="does not divide"):
        encoder(torch.zeros(1, 2, *shape, dtype=torch.float64))


def test_registry_names_are_the_configs_names():
    for name, backbone in BACKBONES.items():
        config = backbone.__init__.__annotations__["config"]
        assert config().name == name
