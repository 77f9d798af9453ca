"""Weights for another number of channels: equal channels give the features of one."""

import pytest
import torch

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.transfer.stem import with_channels
from scanfoundry.backbones.vit import ViTConfig

SMALL = ((2, 2, 2),) * 2 + ((1, 1, 1),) * 3
CONFIGS = {
    "stunet": STUNetConfig(size="S", strides=SMALL),
    "mednext": MedNeXtConfig(size="S"),
    "resenc": ResEncConfig(features=(8, 16, 32), blocks=(1, 2, 2), strides=((2, 2, 2),) * 2),
    "vit": ViTConfig(size="Ti"),
    "vit_dual_norm": ViTConfig(size="Ti", dual_patch_norm=True),
    "primus": PrimusConfig(size="S", grid=(2, 2, 2)),
}


def encoder(config, seed=0):
    torch.manual_seed(seed)
    made = build(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():  # biases and norms that are not 0 and 1
            parameter += 0.05 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", [(1, 32, 32), (16, 16, 16)])
@torch.inference_mode()
def test_equal_channels_give_the_features_of_one(name, shape):
    config = CONFIGS[name]
    one = encoder(config)
    state, four = with_channels(one.state_dict(), config, 4)
    assert four.in_channels == 4
    wide = build(four).double().eval()
    wide.load_state_dict(state)
    x = torch.rand(2, 1, *shape, dtype=torch.float64)
    for before, after in zip(one(x), wide(x.expand(-1, 4, -1, -1, -1)), strict=True):
        assert torch.allclose(before, after, atol=1e-9)
    back, again = with_channels(state, four, 1)
    single = build(again).double().eval()
    single.load_state_dict(back)
    for before, after in zip(one(x), single(x), strict=True):
        assert torch.allclose(before, after, atol=1e-9)


def test_the_same_number_is_left_alone():
    config = CONFIGS["stunet"]
    state = build(config).state_dict()
    kept, same = with_channels(state, config, 1)
    assert same is config
    assert all(kept[name] is value for name, value in state.items())
