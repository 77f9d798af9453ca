"""Primus as nnssl saves it: its own order of the axes is undone, so that the function is that of the pre-training."""

import math

import pytest
import torch
from torch import nn

from scanfoundry.backbones import primus
from scanfoundry.backbones.foreign import load_foreign
from scanfoundry.backbones.foreign.openmind_primus import load_encoder
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.errors import UserError

DIM, DEPTH, HEADS, SIDE = 72, 2, 2, 3
PLAN = {
    "key_to_encoder": "eva",
    "key_to_stem": "down_projection",
    "key_to_lpe": "eva.pos_embed",
    "architecture_plans": {"arch_class_name": "PrimusS", "arch_kwargs": None},
}


class Theirs(nn.Module):
    """What nnssl trains, in its own order: tokens by (H, D, W), positions of a cube as if that were (D, H, W)."""

    def __init__(self):
        super().__init__()
        ensure_torchvision()
        from timm.layers import RotaryEmbeddingCat
        from timm.models.eva import EvaBlock

        self.down_projection = nn.ModuleDict({"proj": nn.Conv3d(1, DIM, 4, 4)})
        self.eva = nn.Module()
        self.eva.pos_embed = nn.Parameter(torch.zeros(1, SIDE**3, DIM))
        options = {"qkv_fused": False, "mlp_ratio": 8 / 3, "swiglu_mlp": True, "scale_mlp": True}
        options |= {"scale_attn_inner": True, "init_values": 0.1, "num_prefix_tokens": 0, "norm_layer": nn.LayerNorm}
        self.eva.blocks = nn.ModuleList(EvaBlock(DIM, HEADS, **options) for _ in range(DEPTH))
        self.eva.norm = nn.LayerNorm(DIM)
        self.rotations = RotaryEmbeddingCat(DIM // HEADS * 2 // 3, in_pixels=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.up_projection = nn.Linear(DIM, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, mean=0.1, std=0.3)

    def forward(self, x):
        tokens = self.down_projection["proj"](x).permute(0, 3, 2, 4, 1).flatten(1, 3)
        tokens = tokens + self.eva.pos_embed
        for block in self.eva.blocks:
            tokens = block(tokens, rope=self.rotations.get_embed([SIDE] * 3, dtype=tokens.dtype))
        return self.eva.norm(tokens).unflatten(1, (SIDE,) * 3).permute(0, 4, 2, 1, 3)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(primus.WIDTH_DEPTH_HEADS, "S", (DIM, DEPTH, HEADS))


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_the_encoder_computes_what_was_trained(nnssl, prefix):
    theirs = Theirs().eval()
    told = PLAN | {"key_to_encoder": f"{prefix}eva"}
    path = nnssl({prefix + key: value for key, value in theirs.state_dict().items()}, **told)
    encoder, info, report = load_foreign(path)
    assert encoder.config == PrimusConfig(size="S", patch=(4, 4, 4), grid=(SIDE,) * 3)
    x = torch.randn(2, 1, 12, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.double().eval()(x)[0], theirs.double()(x), rtol=1e-5, atol=1e-5)
    # the rotations of timm are float32; a wrong order is another function altogether
    with torch.no_grad():
        other = encoder(x.transpose(2, 3))[0].transpose(2, 3)
    assert (other - theirs(x)).abs().max() > 0.1
    keys = {prefix + key for key in theirs.state_dict()}
    sources = {*report.used.values(), *(key for key, _ in report.adapted.values())}
    assert sources | set(report.left) >= keys
    assert {f"{prefix}mask_token", f"{prefix}up_projection.weight"} <= set(report.left)
    assert not report.missing
    assert set(report.adapted) == {
        "pos_embed",
        *(
            f"blocks.{n}.attn.{part}"
            for n in range(DEPTH)
            for part in ("q_proj.weight", "q_proj.bias", "k_proj.weight")
        ),
    }
    assert info.crop_3d == (160, 160, 160)


def test_channels_are_adapted(nnssl):
    path = nnssl(Theirs().state_dict(), **PLAN)
    one, two = (load_foreign(path, in_channels=n)[0].eval() for n in (1, 2))
    x = torch.randn(1, 1, 12, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(two(x.expand(-1, 2, -1, -1, -1))[0], one(x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eva.blocks.1.gamma_2", None, "no whole Primus-S, encoder: it has no blocks.1.gamma_2"),
        ("eva.blocks.0.attn.norm.bias", None, "has no blocks.0.attn.norm.bias"),
        ("eva.blocks.0.attn.q_norm.weight", torch.ones(36), "q_norm.weight has no place"),
        ("eva.blocks.0.attn.k_proj.weight", torch.ones(71, DIM), r"is \(71, 72\), should be \(72, 72\)"),
        ("eva.pos_embed", torch.ones(1, 26, DIM), "positions for 26 patches, which are no cube"),
        ("eva.pos_embed", torch.full((1, 27, DIM), math.inf), "no finite numbers"),
        ("eva.pos_embed", torch.ones(27, DIM), "give a 3D Primus"),
        ("down_projection.proj.weight", torch.ones(DIM, 1, 4, 4), "give a 3D Primus"),
        ("eva.blocks.2.gamma_1", torch.ones(DIM), r"72 wide and has 3 blocks; Primus has S 72 and 2, B 792 and 12"),
    ],
)
def test_what_is_no_primus_of_the_paper_is_refused(nnssl, key, value, message):
    state = Theirs().state_dict()
    if value is None:
        del state[key]
    else:
        state[key] = value
    with pytest.raises(UserError, match=message):
        load_foreign(nnssl(state, **PLAN))


def test_another_architecture_is_refused_by_its_name(nnssl):
    weights = read_weights(nnssl(Theirs().state_dict(), architecture_plans={"arch_class_name": "PrimusX"}))
    with pytest.raises(UserError, match="says that it is a 'PrimusX'; known are PrimusS"):
        load_encoder(weights)


def test_half_precision_is_widened_before_the_axes_are_swapped(nnssl):
    state = {key: value.half() for key, value in Theirs().state_dict().items()}
    _, _, report = load_foreign(nnssl(state, **PLAN))
    assert "float16 to float32; axes D and H swapped" in report.adapted["pos_embed"][1]
    assert report.adapted["norm.weight"][1] == "float16 to float32"
