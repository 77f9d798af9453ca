"""Primus against counts by hand, a plain functional restatement and timm's rotary embedding."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones import primus
from scanfoundry.backbones.primus import PrimusConfig, rotary_table
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.errors import UserError

GRID = (2, 3, 4)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(primus.WIDTH_DEPTH_HEADS, "S", (72, 3, 2))
    return PrimusConfig(size="S", in_channels=2, patch=(4, 8, 2), grid=GRID)


def randomised(config):
    encoder = build(config).double().eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return encoder


@pytest.mark.parametrize(("size", "dim", "depth"), [("S", 396, 12), ("B", 792, 12), ("M", 864, 16), ("L", 1056, 24)])
def test_parameter_counts(size, dim, depth):
    with torch.device("meta"):
        encoder = build(PrimusConfig(size=size))
    hidden = 8 * dim // 3
    attention = 4 * dim * dim + 3 * dim + 2 * dim  # the key has no bias; a norm on the output
    mlp = 3 * dim * hidden + 2 * hidden + dim + 2 * hidden  # gate, value and output; a norm within
    block = attention + mlp + 2 * 2 * dim + 2 * dim  # two norms before, two LayerScales
    tokens = 512 * dim + dim + 8000 * dim
    assert sum(p.numel() for p in encoder.parameters()) == depth * block + tokens + 2 * dim


def restated(state, x, config, heads, axes_pairs):
    """Primus in plain functional code: the grid's features."""
    dim = state["norm.weight"].numel()
    b = len(x)
    tokens = F.conv3d(x, state["patch_embed.weight"], state["patch_embed.bias"], stride=config.patch)
    grid = tokens.shape[2:]
    tokens = tokens.flatten(2).transpose(1, 2) + state["pos_embed"]
    n, head = tokens.shape[1], dim // heads

    def norm(x, key):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-5) * state[f"{key}.weight"] + state[f"{key}.bias"]

    def linear(x, key):
        y = x @ state[f"{key}.weight"].T
        return y + state[f"{key}.bias"] if f"{key}.bias" in state else y

    def turned(x):  # pairs as complex numbers, each axis turning its third of them
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        places = [(i // (grid[1] * grid[2]), i // grid[2] % grid[1], i % grid[2]) for i in range(n)]
        angles = [[p[axis] / 10000 ** (k / axes_pairs) for axis in range(3) for k in range(axes_pairs)] for p in places]
        z = z * torch.polar(
            torch.ones(n, 3 * axes_pairs, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
        )
        return torch.view_as_real(z).flatten(-2)

    for i in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        key = f"blocks.{i}"
        y = norm(tokens, f"{key}.norm1")
        q, k, v = (
            linear(y, f"{key}.attn.{part}_proj").view(b, n, heads, head).transpose(1, 2) for part in ("q", "k", "v")
        )
        weights = torch.softmax(turned(q) @ turned(k).transpose(2, 3) / math.sqrt(head), dim=-1)
        y = linear(norm((weights @ v).transpose(1, 2).reshape(b, n, dim), f"{key}.attn.norm"), f"{key}.attn.proj")
        tokens = tokens + state[f"{key}.gamma_1"] * y
        y = norm(tokens, f"{key}.norm2")
        gate = linear(y, f"{key}.mlp.fc1_g")
        y = norm(gate / (1 + torch.exp(-gate)) * linear(y, f"{key}.mlp.fc1_x"), f"{key}.mlp.norm")
        tokens = tokens + state[f"{key}.gamma_2"] * linear(y, f"{key}.mlp.fc2")
    return norm(tokens, "norm").transpose(1, 2).reshape(b, dim, *grid)


def test_forward_equals_the_functional_restatement(small):
    encoder = randomised(small)
    x = torch.randn(2, 2, 8, 24, 8, dtype=torch.float64)
    with torch.no_grad():
        (ours,), plain = encoder(x), restated(encoder.state_dict(), x, small, heads=2, axes_pairs=6)
        torch.testing.assert_close(encoder.pooled(x), plain.mean(dim=(2, 3, 4)), rtol=1e-10, atol=1e-10)
    assert ours.shape == (2, 72, *GRID)
    assert encoder.feature_strides(is_2d=False) == ((4, 8, 2),)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_rotations_are_timms():
    ensure_torchvision()
    from timm.layers import RotaryEmbeddingCat

    theirs = RotaryEmbeddingCat(48, in_pixels=False).get_embed([4, 5, 6])  # 48 is what Primus gives for heads of 72
    torch.testing.assert_close(rotary_table((4, 5, 6), 72, torch.float32, torch.device("cpu")), theirs)


def test_a_scan_of_depth_one_is_the_volume_that_repeats_it(small):
    encoder = randomised(small)
    x = torch.randn(2, 2, 1, 32, 12, dtype=torch.float64, requires_grad=True)  # 4 x 6 patches: positions interpolated
    (flat,), (solid,) = encoder(x), encoder(x.expand(-1, -1, 4, -1, -1))
    assert flat.shape == (2, 72, 1, 4, 6)
    assert encoder.feature_strides(is_2d=True) == ((1, 8, 2),)
    torch.testing.assert_close(flat, solid, rtol=1e-10, atol=1e-10)
    inputs = [x, *encoder.parameters()]
    probe = torch.randn_like(flat)
    ours, theirs = (torch.autograd.grad((y * probe).sum(), inputs) for y in (flat, solid))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_positions_of_another_grid_are_interpolated_between_the_learned_ones(small):
    encoder = randomised(small)
    d, h, w = (torch.arange(n, dtype=torch.float64) for n in GRID)
    plane = (100 * d.view(-1, 1, 1) + 10 * h.view(-1, 1) + w).reshape(1, -1, 1)
    encoder.pos_embed.data.copy_(plane.expand(-1, -1, 72))  # linear in every axis, so that it is known between
    assert encoder.positions(GRID) is encoder.pos_embed
    table = encoder.positions((2, 3, 2))
    assert table.shape == (1, 12, 72)
    expected = 100 * d.view(-1, 1, 1) + 10 * h.view(-1, 1) + torch.tensor([0.5, 2.5], dtype=torch.float64)
    torch.testing.assert_close(table[0, :, 7], expected.flatten())


def test_residual_branches_start_smaller_with_depth():
    blocks = primus.eva_blocks(396, 8, 6, drop_path=0.2)
    for number, block in enumerate(blocks, start=1):
        for last in (block.attn.proj, block.mlp.fc2):
            assert last.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.02)
        assert block.mlp.fc1_x.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert (block.gamma_1 == 0.1).all()
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in blocks] == pytest.approx([0.2 * i / 7 for i in range(8)])


@pytest.mark.parametrize("shape", [(8, 20, 8), (2, 24, 8), (1, 24, 3)])
def test_sizes_that_are_no_whole_patches_are_refused(small, shape):
    encoder = build(small)
    with pytest.raises(UserError, match=r"allowed is every multiple of \((4|1), 8, 2\)"):
        encoder(torch.randn(1, 2, *shape))


def test_the_config_travels_and_is_checked():
    config = PrimusConfig(size="B", patch=(8, 8, 8), grid=(4, 5, 6), drop_path=0.2)
    assert PrimusConfig.model_validate_json(config.model_dump_json()) == config
    for wrong in ({"size": "XL"}, {"patch": (0, 8, 8)}, {"grid": (4, 5)}, {"drop_path": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PrimusConfig(**wrong)
