"""Low-rank updates: nothing at the start, exactly merged at the end, on every backbone, in 2D and 3D."""

import pytest
import torch
from torch import nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.recipes import LoraConfig
from scanfoundry.finetune.heads.segmentation import SegmentationModel
from scanfoundry.finetune.training.lora import inject, targets

STRIDES = ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
BACKBONES = {
    "stunet": STUNetConfig(size="S", strides=STRIDES),
    "mednext": MedNeXtConfig(size="S"),
    "vit": ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(8, 8, 8)),
}


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("shape", [(1, 1, 16, 32, 32), (2, 1, 1, 32, 32)])
def test_it_starts_as_the_encoder_and_is_merged_exactly(name, shape):
    torch.manual_seed(0)
    encoder = build(BACKBONES[name]).eval()
    images = torch.randn(shape)
    keys = set(encoder.state_dict())
    before = encoder(images)[-1]
    lora = inject(encoder, LoraConfig(rank=4))
    torch.testing.assert_close(encoder(images)[-1], before)
    learning = [key for key, p in encoder.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora_" in key for key in learning)
    for key, parameter in encoder.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.02)
    changed = encoder(images)[-1]
    assert not torch.allclose(changed, before, atol=1e-3)
    lora.merge()
    assert set(encoder.state_dict()) == keys
    torch.testing.assert_close(encoder(images)[-1], changed, rtol=1e-4, atol=1e-4)


def test_a_decoder_that_shares_the_layers_sees_the_updates():
    torch.manual_seed(0)
    encoder = build(BACKBONES["stunet"])
    lora = inject(encoder, LoraConfig(rank=4))
    model = SegmentationModel(encoder, 3, is_2d=False)
    sum(out.square().mean() for out in model(torch.randn(1, 1, 16, 32, 32))).backward()
    updates = [p for key, p in model.named_parameters() if "lora_B" in key]
    assert updates
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in updates)
    assert all(p.grad is None for p in model.encoder_parameters() if not p.requires_grad)
    lora.merge()
    assert not [key for key in model.state_dict() if "lora" in key]


def test_only_layers_with_room_get_one_and_convolutions_are_safe_at_depth_two():
    encoder = build(BACKBONES["mednext"])
    depthwise = {name for name, m in encoder.named_modules() if isinstance(m, nn.Conv3d) and m.groups > 1}
    assert depthwise
    assert not depthwise & set(targets(encoder, 8))
    small = build(BACKBONES["stunet"])
    assert "conv_blocks_context.0.0.conv1" not in targets(small, 8)  # one input channel
    inject(small, LoraConfig(rank=8))
    added = [m for name, m in small.named_modules() if name.endswith("lora_A.default")]
    assert added
    assert all(isinstance(m, DepthFreeConv3d) for m in added)
    with pytest.raises(UserError, match=r"lora\.rank=500"):
        inject(build(BACKBONES["stunet"]), LoraConfig(rank=500))


@pytest.mark.parametrize("config", [ResEncConfig(), PrimusConfig()])
def test_the_released_backbones_have_layers_for_it(config):
    with torch.device("meta"):
        encoder = build(config)
    assert len(targets(encoder, 8)) > 20
