from functools import partial

import pytest
import torch
import torch.nn.functional as F

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import backbones, build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.finetune.heads.classification import ClassificationModel
from scanfoundry.finetune.heads.segmentation import SegmentationModel
from scanfoundry.finetune.losses import deep_supervision, dice_ce, soft_dice

BACKBONES = {
    "mednext": MedNeXtConfig(size="S"),
    "primus": PrimusConfig(size="S", grid=(2, 2, 3)),
    "resenc": ResEncConfig(features=(8, 12, 16, 16), blocks=(1, 2, 1, 1), strides=((2, 2, 2),) * 3),
    "stunet": STUNetConfig(size="S", strides=((2, 2, 2),) * 3 + ((1, 1, 1),) * 2),
    "vit": ViTConfig(size="Ti", patch_2d=(8, 8)),
}
SHAPES = {True: (1, 32, 48), False: (16, 16, 24)}


def test_every_backbone_is_tried():
    assert BACKBONES.keys() == backbones().keys()


@pytest.mark.parametrize("is_2d", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
class TestEveryBackbone:
    def test_segmentation(self, name, is_2d):
        model = SegmentationModel(build(BACKBONES[name]), 3, is_2d)
        outputs = model.train()(torch.randn(1, 1, *SHAPES[is_2d]))
        assert outputs[0].shape == (1, 3, *SHAPES[is_2d])
        sum(o.square().mean() for o in outputs).backward()
        encoder = [p.grad is not None for p in model.encoder_parameters()]
        assert any(encoder)
        with torch.inference_mode():
            assert model.eval()(torch.randn(1, 1, *SHAPES[is_2d])).shape == (1, 3, *SHAPES[is_2d])

    def test_classification(self, name, is_2d):
        model = ClassificationModel(build(BACKBONES[name]), 3)
        assert model(torch.randn(2, 1, *SHAPES[is_2d])).tolist() == [[0.0] * 3] * 2


def test_features_of_one_mean_over_space_are_told_apart_by_their_maximum():
    """What an InstanceNorm gives has the same mean over space for every scan, be a lesion there or not."""
    model = ClassificationModel(build(BACKBONES["stunet"]), 3)
    torch.nn.init.normal_(model.linear.weight)
    width = model.encoder.pooled_dim
    flat = torch.randn(1, width, 1, 1, 1).expand(1, width, 2, 3, 4)
    noise = torch.randn(1, width, 2, 3, 4)
    peaked = flat + noise - noise.mean((2, 3, 4), keepdim=True)
    torch.testing.assert_close(peaked.mean((2, 3, 4)), flat.mean((2, 3, 4)))
    assert (model.head(flat) - model.head(peaked)).abs().min() > 0.1
    higher = model.head(torch.cat((flat, flat + 5)))  # of each half its own LayerNorm: a common shift is no news
    torch.testing.assert_close(higher[0], higher[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 35, 48), (9, 20, 18)])
def test_a_mednext_is_segmented_by_its_own_decoder(shape):
    """Five resolutions in training, of any size, and a loss that trains the encoder and the decoder."""
    encoder = build(BACKBONES["mednext"])
    model = SegmentationModel(encoder, 3, shape[0] == 1).train()
    assert {"net.up_3.conv1.weight", "net.dec_block_0.1.conv3.bias"} <= set(model.state_dict())
    assert {id(p) for p in model.encoder_parameters()} == {id(p) for p in encoder.parameters()}
    outputs = model(torch.randn(2, 1, *shape))
    sizes = [tuple(-(-n // 2**level) for n in shape) for level in range(5)]
    assert [tuple(y.shape) for y in outputs] == [(2, 3, *size) for size in sizes]
    deep_supervision(outputs, torch.randint(0, 3, (2, *shape))).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == ["net.out_4.conv_out.weight", "net.out_4.conv_out.bias"]  # the coarsest has no weight in the loss
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 1, *shape)).shape == (1, 3, *shape)


@pytest.mark.parametrize("shape", [(1, 35, 48), (9, 20, 18)])
def test_a_pyramid_without_a_decoder_of_its_own_gets_a_u_shaped_one(shape):
    """Every level reaches the logits, at any size, and the loss trains all of encoder and decoder."""
    encoder = build(BACKBONES["resenc"])
    encoder.decoder = partial(Encoder.decoder, encoder)  # what a plug-in inherits
    model = SegmentationModel(encoder, 3, shape[0] == 1).train()
    assert {id(p) for p in model.encoder_parameters()} == {id(p) for p in encoder.parameters()}
    outputs = model(torch.randn(2, 1, *shape))
    sizes = [tuple(-(-n // 2**level) for n in shape) for level in range(3)]
    assert [tuple(y.shape) for y in outputs] == [(2, 3, *size) for size in sizes]
    deep_supervision(outputs, torch.randint(0, 3, (2, *shape))).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == ["net.heads.0.weight", "net.heads.0.bias"]  # the coarsest has no weight in the loss
    x = torch.randn(1, 1, *shape)
    with torch.no_grad():
        full = model.eval()(x)
        torch.testing.assert_close(full, plain_u_decoder(model.net, encoder(x)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(full, model.train()(x)[0])


def plain_u_decoder(net, features):
    """Logits in plain functional code: every level once, from the deepest up."""
    y = features[-1]
    for up, block, skip in zip(net.ups, net.blocks, features[-2::-1], strict=True):
        for axis, size in enumerate(skip.shape[2:], start=2):
            y = y.index_select(axis, torch.arange(size) * y.shape[axis] // size)
        y = torch.cat((F.conv3d(y, up.conv.weight, up.conv.bias), skip), dim=1)
        y = F.conv3d(y, block.conv.weight, block.conv.bias, padding=1)
        y = F.leaky_relu(F.instance_norm(y, weight=block.norm.weight, bias=block.norm.bias), 0.01)
    return F.conv3d(y, net.heads[-1].weight, net.heads[-1].bias)


def test_soft_dice_as_monai():
    from monai.losses import DiceLoss

    logits, labels = torch.randn(2, 4, 3, 5, 6), torch.randint(0, 4, (2, 3, 5, 6))
    reference = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert soft_dice(logits, labels).item() == pytest.approx(reference(logits, labels[:, None]).item(), abs=1e-4)
    sure = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float() * 40
    assert dice_ce(sure, labels).item() == pytest.approx(0, abs=1e-4)
