"""The ViT against a plain functional restatement with every option, its positions against MAE's loops, any grid."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones.layers.positions import sincos_positions
from scanfoundry.backbones.registry import backbones, build
from scanfoundry.backbones.vit import WIDTH_DEPTH_HEADS, ViTConfig
from scanfoundry.configs.errors import UserError

SHAPES = [(1, 32, 48), (1, 80, 16), (16, 8, 24), (8, 24, 32)]
OPTIONS = {
    "plain": {},
    "dual-patch-norm": {"dual_patch_norm": True},
    "registers": {"registers": 3},
    "layer-scale": {"layer_scale": 0.1},
    "all": {"dual_patch_norm": True, "registers": 2, "layer_scale": 0.1},
}
OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
SMALL = {"size": "Ti", "in_channels": 2, "patch_2d": (4, 6), "patch_3d": (2, 4, 3)}
SCANS = pytest.mark.parametrize("shape", [(1, 8, 18), (4, 12, 6)], ids=["2D", "3D"])  # grids (1, 2, 3), (2, 3, 2)


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
    for name, backbone in backbones().items():
        assert backbone().name == name


def layer_norm(x, state, key):
    mean = x.mean(dim=-1, keepdim=True)
    var = (x - mean).square().mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-6) * state[f"{key}.weight"] + state[f"{key}.bias"]


def restated_tokens(state, x, config, heads, keep=None):
    """The ViT in plain functional code, patch by patch: (B, extra + n, F)."""
    flat = x.shape[2] == 1
    name = "patch_embed_2d" if flat else "patch_embed_3d"
    patch = (1, *config.patch_2d) if flat else config.patch_3d
    grid = tuple(n // p for n, p in zip(x.shape[2:], patch, strict=True))
    weight, rows = state[f"{name}.weight"].flatten(1), []
    table = sincos_positions(grid, len(weight), flat)
    for i, j, k in ((i, j, k) for i in range(grid[0]) for j in range(grid[1]) for k in range(grid[2])):
        box = [slice(n * p, (n + 1) * p) for n, p in zip((i, j, k), patch, strict=True)]
        voxels = x[:, :, box[0], box[1], box[2]].flatten(1)
        if config.dual_patch_norm:
            voxels = layer_norm(voxels, state, f"{name}.norm_in")
        token = voxels @ weight.T + state[f"{name}.bias"]
        if config.dual_patch_norm:
            token = layer_norm(token, state, f"{name}.norm_out")
        rows.append(token + table[len(rows)])
    tokens = torch.stack(rows, dim=1)
    if keep is not None:
        tokens = torch.stack([sample[chosen] for sample, chosen in zip(tokens, keep, strict=True)])
    front = [state["cls_token"]] + ([state["reg_token"]] if config.registers else [])
    tokens = torch.cat([part.expand(len(x), -1, -1) for part in front] + [tokens], dim=1)
    for block in range(2):
        key = f"blocks.{block}"
        scales = [state[f"{key}.ls{n}.gamma"] if config.layer_scale else 1.0 for n in (1, 2)]
        y = F.linear(layer_norm(tokens, state, f"{key}.norm1"), state[f"{key}.attn.qkv.weight"])
        q, k, v = (y + state[f"{key}.attn.qkv.bias"]).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        y = (attention @ v).transpose(1, 2).flatten(2) @ state[f"{key}.attn.proj.weight"].T
        tokens = tokens + scales[0] * (y + state[f"{key}.attn.proj.bias"])
        y = layer_norm(tokens, state, f"{key}.norm2") @ state[f"{key}.mlp.fc1.weight"].T + state[f"{key}.mlp.fc1.bias"]
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        tokens = tokens + scales[1] * (y @ state[f"{key}.mlp.fc2.weight"].T + state[f"{key}.mlp.fc2.bias"])
    return layer_norm(tokens, state, "norm")


@pytest.fixture
def small(monkeypatch):
    """Makes a ViT of two blocks whose every parameter is random."""
    monkeypatch.setitem(WIDTH_DEPTH_HEADS, "Ti", (24, 2, 3))

    def make(options):
        encoder = build(ViTConfig(**SMALL, **options)).double()
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, mean=0.1, std=0.3)
        return encoder

    return make


@OPTION
@SCANS
@pytest.mark.parametrize("kept", [None, 2], ids=["all", "kept"])
def test_forward_and_gradients_equal_the_functional_restatement(small, options, shape, kept):
    encoder = small(options)
    x = torch.randn(3, 2, *shape, dtype=torch.float64, requires_grad=True)
    keep = None if kept is None else torch.tensor([[0, 3], [5, 1], [4, 2]])
    ours = encoder.forward_tokens(x, keep)
    state = dict(encoder.named_parameters())
    plain = restated_tokens(state, x, encoder.config, 3, keep)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(plain)
    other_kind = "3d" if shape[0] == 1 else "2d"
    used = [x, *(p for name, p in state.items() if other_kind not in name)]
    one, other = (torch.autograd.grad((tokens * probe).sum(), used) for tokens in (ours, plain))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 8, 18), (4, 12, 6)], ids=["2D", "3D"])
@pytest.mark.parametrize("kept", [None, 2], ids=["all", "kept"])
def test_the_embedding_is_the_convolution_of_its_weights(small, shape, kept):
    encoder = small({})
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    embed, patch = (encoder.patch_embed_2d, (1, 4, 6)) if shape[0] == 1 else (encoder.patch_embed_3d, (2, 4, 3))
    plain = F.conv3d(x, embed.weight.view(24, 2, *patch), embed.bias, patch).flatten(2).transpose(1, 2)
    keep = None if kept is None else torch.tensor([[0, 3], [5, 1]])
    if keep is not None:
        plain = plain.gather(1, keep.unsqueeze(-1).expand(-1, -1, 24))
    torch.testing.assert_close(embed(x, keep), plain, rtol=1e-12, atol=1e-12)


@OPTION
@SCANS
def test_patches_left_out_have_no_influence(small, options, shape):
    encoder = small(options)
    x = torch.randn(2, 2, *shape, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([[0, 3], [5, 1]])
    patch, (_, h, w) = encoder.patch(shape[0] == 1), encoder.grid(shape)
    seen = torch.zeros(2, 1, *shape, dtype=torch.bool)
    for sample, chosen in enumerate(keep.tolist()):
        for index in chosen:
            place = (index // (h * w), index // w % h, index % w)
            d0, h0, w0 = (slice(n * p, (n + 1) * p) for n, p in zip(place, patch, strict=True))
            seen[sample, :, d0, h0, w0] = True
    tokens = encoder.forward_tokens(x, keep)
    (gradient,) = torch.autograd.grad((tokens * torch.randn_like(tokens)).sum(), x)
    assert torch.equal(gradient.abs().sum(dim=1, keepdim=True) > 0, seen)
    with torch.no_grad():
        noise = torch.where(seen, x, float("nan"))
        assert torch.equal(encoder.forward_tokens(noise, keep), tokens)


@OPTION
def test_options_add_their_parameters_and_nothing_else(small, options):
    keys = set(small(options).state_dict())
    added = set()
    if options.get("dual_patch_norm"):
        sides = [f"patch_embed_{n}d.norm_{side}" for n in (2, 3) for side in ("in", "out")]
        added |= {f"{side}.{part}" for side in sides for part in ("weight", "bias")}
    if options.get("registers"):
        added.add("reg_token")
    if options.get("layer_scale"):
        added |= {f"blocks.{block}.ls{n}.gamma" for block in range(2) for n in (1, 2)}
    assert keys - set(small({}).state_dict()) == added
    outer = {"cls_token", "norm.weight", "norm.bias", "patch_embed_2d.weight", "patch_embed_2d.bias"}
    assert outer | {"patch_embed_3d.weight", "patch_embed_3d.bias"} <= keys


def test_registers_reach_neither_the_feature_map_nor_the_pooled_vector(small):
    encoder = small({"registers": 3})
    x = torch.randn(1, 2, 4, 12, 6, dtype=torch.float64)
    with torch.no_grad():
        tokens = encoder.forward_tokens(x)
        (feature,) = encoder(x)
        assert encoder.extra_tokens == 4
        assert tokens.shape == (1, 4 + 12, 24)
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), tokens[:, 4:])
        torch.testing.assert_close(encoder.pooled(x), tokens[:, 4:].mean(dim=1))


def test_layer_scale_starts_at_its_value_and_its_zero_is_refused():
    encoder = build(ViTConfig(size="Ti", layer_scale=0.125))
    assert (encoder.blocks[3].ls2.gamma == 0.125).all()
    with pytest.raises(ValueError, match="layer_scale"):
        ViTConfig(layer_scale=0)


@pytest.mark.parametrize("shape", [(1, 8, 18), (4, 12, 6)], ids=["2D", "3D"])
def test_bfloat16_autocast_stays_near(small, shape):
    encoder = small(OPTIONS["all"]).float()
    x, keep = torch.randn(2, 2, *shape), torch.tensor([[0, 3], [5, 1]])
    exact = encoder.forward_tokens(x, keep)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder.forward_tokens(x, keep)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
