"""ResEnc's whole U-Net against a plain functional restatement of nnU-Net's, and what is ours: odd sizes, depth 1."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones.models.parts import joined, split
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.resenc_decoder import StrideUp

CONFIG = ResEncConfig(features=(4, 6, 8, 8), blocks=(1, 2, 1, 1), strides=((1, 2, 2), (2, 2, 2), (2, 2, 1)))


def whole(classes=3):
    network = build(CONFIG).decoder(classes).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.3)
    return network


def restated(state, features):
    """All logits, full resolution first, from the encoder's features: every voxel of a block written by hand."""
    y, logits = features[-1], []
    for n, (skip, stride) in enumerate(zip(features[-2::-1], CONFIG.strides[::-1], strict=True)):
        if skip.shape[2] == 1:
            stride = (1, *stride[1:])
        weight = state[f"transpconvs.{n}.weight"]
        if skip.shape[2] == 1:  # as a 2D network: the mean over the slices that a block would have
            weight = weight.mean(dim=2, keepdim=True)
        b, _, d, h, w = y.shape
        up = torch.einsum("bcdhw,cfijk->bfdihjwk", y, weight).reshape(
            b, -1, d * stride[0], h * stride[1], w * stride[2]
        )
        up = up + state[f"transpconvs.{n}.bias"].view(1, -1, 1, 1, 1)
        up = up[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]]
        name = f"stages.{n}.convs.0"
        y = F.conv3d(torch.cat((up, skip), 1), state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], padding=1)
        mean = y.mean(dim=(2, 3, 4), keepdim=True)
        y = (y - mean) / torch.sqrt((y - mean).square().mean(dim=(2, 3, 4), keepdim=True) + 1e-5)
        y = y * state[f"{name}.norm.weight"].view(1, -1, 1, 1, 1) + state[f"{name}.norm.bias"].view(1, -1, 1, 1, 1)
        y = torch.where(y > 0, y, 0.01 * y)
        logits.append(
            torch.einsum("bcdhw,kc->bkdhw", y, state[f"seg_layers.{n}.weight"].flatten(1))
            + state[f"seg_layers.{n}.bias"].view(1, -1, 1, 1, 1)
        )
    return logits[::-1]


@pytest.mark.parametrize("shape", [(8, 16, 16), (1, 16, 24), (7, 9, 13), (1, 11, 6)], ids=str)
def test_forward_equals_the_restatement_at_any_size(shape):
    network = whole()
    x = torch.randn(2, 1, *shape, dtype=torch.float64)
    with torch.no_grad():
        plain = restated(network.state_dict(), network.encode(x))
        ours = network(x)
        network.deep_supervision = False
        torch.testing.assert_close(network(x), ours[0], rtol=0, atol=0)
    assert [tuple(y.shape[2:]) for y in ours] == [tuple(f.shape[2:]) for f in network.encode(x)[:-1]]
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_depth_of_one_is_the_mean_of_the_slices_that_a_block_would_have():
    up = StrideUp(3, 2, (2, 2, 2)).double()
    x = torch.randn(1, 3, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        volume = up(x, (2, 8, 8))
        torch.testing.assert_close(up(x, (1, 8, 8)), volume.mean(dim=2, keepdim=True), rtol=1e-12, atol=1e-12)
        assert torch.equal(up(x, (2, 7, 8)), volume[:, :, :, :7])


def test_every_weight_has_a_part_and_gets_a_gradient():
    network = whole()
    parts = split(network, network.state_dict())
    assert {part: len(weights) for part, weights in parts.items()} == {
        "encoder": len(build(CONFIG).state_dict()), "decoder": 3 * 6, "head": 3 * 2,
    }  # fmt: skip
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in joined(network, network.state_dict(), parts).items())
    sum(y.square().mean() for y in network(torch.randn(1, 1, 8, 16, 16, dtype=torch.float64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    alone = build(CONFIG).feature_decoder()
    assert alone.state_dict().keys() == parts["decoder"].keys()
