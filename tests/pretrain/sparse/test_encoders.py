"""Encoders on packed blocks against a masked dense walk in plain code: outputs and all gradients, float64, 1e-9."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones import stunet
from scanfoundry.backbones.mednext import MedNeXtConfig, MedNeXtEncoder
from scanfoundry.backbones.mednext import encoder as mednext
from scanfoundry.backbones.resenc import ResEncConfig, ResEncEncoder
from scanfoundry.backbones.stunet import STUNetConfig, STUNetEncoder
from scanfoundry.pretrain.engine import activation_checkpointing
from scanfoundry.pretrain.masking import enlarge
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.encoders import packed_features

STRIDES = ((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1))  # total (2, 4, 8)
RELEASED = ((2, 2, 2),) * 4 + ((1, 1, 2),)
STUNET = STUNetConfig(size="S", in_channels=2, strides=STRIDES)
RESENC = ResEncConfig(
    in_channels=2, features=(4, 6, 8, 8), blocks=(2, 1, 2, 1), strides=((2, 2, 2), (1, 2, 2), (1, 1, 2))
)
CASES = {  # backbone, (D, H, W), block
    "stunet 3d": (STUNET, (8, 12, 32), (4, 4, 16)),
    "stunet 3d, blocks of one cell": (STUNET, (4, 12, 16), (2, 4, 8)),
    "stunet 2d": (STUNET, (1, 12, 32), (1, 4, 8)),
    "stunet, released strides": (STUNetConfig(size="S", strides=RELEASED), (32, 32, 64), (16, 16, 32)),
    "mednext k3 3d": (MedNeXtConfig(size="S"), (32, 32, 48), (16, 16, 16)),
    "mednext k5 3d": (MedNeXtConfig(size="S", kernel=5, in_channels=2), (32, 16, 32), (16, 16, 16)),
    "mednext k3 2d": (MedNeXtConfig(size="B"), (1, 48, 64), (1, 16, 32)),
    "mednext k5 2d": (MedNeXtConfig(size="S", kernel=5), (1, 32, 48), (1, 16, 16)),
    "resenc 3d": (RESENC, (8, 12, 32), (4, 4, 16)),
    "resenc 3d, blocks of one cell": (RESENC, (4, 12, 16), (2, 4, 8)),
    "resenc 2d": (RESENC, (1, 12, 32), (1, 4, 8)),
}
CLASSES = {"stunet": STUNetEncoder, "mednext": MedNeXtEncoder, "resenc": ResEncEncoder}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Few channels, so that float64 takes seconds; two blocks in every stage, so that identity shortcuts are walked."""
    monkeypatch.setitem(stunet.WIDTHS_AND_DEPTHS, "S", (6, 2))
    monkeypatch.setattr(mednext, "WIDTH", 6)


def make(config):
    torch.manual_seed(0)
    encoder = CLASSES[config.name](config).double()
    for name, parameter in encoder.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return encoder


def visible_blocks(shape, block):
    """Two samples with different numbers of visible blocks."""
    grid = tuple(n // b for n, b in zip(shape, block, strict=True))
    visible = torch.rand(2, 1, *grid, generator=torch.Generator().manual_seed(5)) > 0.5
    visible[0].view(-1)[0] = visible[1].view(-1)[-1] = True
    visible[1].view(-1)[0] = False
    return visible


def seen_norm(x, seen, norm):
    """Sample by sample over the list of visible voxels, zero elsewhere."""
    out = []
    for one, mask in zip(x, seen, strict=True):
        values = one[:, mask[0]]
        mean, var = values.mean(1), values.var(1, unbiased=False)
        normed = (one - mean.view(-1, 1, 1, 1)) / (var + norm.eps).sqrt().view(-1, 1, 1, 1)
        out.append(normed * norm.weight.view(-1, 1, 1, 1) + norm.bias.view(-1, 1, 1, 1))
    return torch.stack(out) * seen


def seen_conv(conv, x, seen, stride=(1, 1, 1)):
    """A padded 3D convolution whatever the depth, then zeros on hidden voxels."""
    pad = conv.weight.shape[-1] // 2
    return F.conv3d(x, conv.weight, conv.bias, stride, pad, groups=conv.groups) * seen


def shrink(seen, stride):
    for axis, step in enumerate(stride, start=2):
        if seen.shape[axis] > 1:
            seen = seen.index_select(axis, torch.arange(0, seen.shape[axis], step))
    return seen


def dense_stunet(encoder, x, seen):
    features = []
    for stage, stride in zip(encoder.conv_blocks_context, ((1, 1, 1), *encoder.config.strides), strict=True):
        seen = shrink(seen, stride)
        for number, block in enumerate(stage):
            step = stride if number == 0 else (1, 1, 1)
            y = F.leaky_relu(seen_norm(seen_conv(block.conv1, x, seen, step), seen, block.norm1), 0.01)
            y = seen_norm(seen_conv(block.conv2, y, seen), seen, block.norm2)
            x = F.leaky_relu(y + (x if block.conv3 is None else seen_conv(block.conv3, x, seen, step)), 0.01)
        features.append(x)
    return features


def dense_mednext(encoder, x, seen):
    def expand(block, x, seen, stride):
        y = seen_norm(seen_conv(block.conv1, x, seen, stride), seen, block.norm)
        return seen_conv(block.conv3, F.gelu(seen_conv(block.conv2, y, seen)), seen)

    stem, stages = encoder.stages()
    x, features = seen_conv(stem, x, seen), []
    for stage, down in stages:
        for block in stage:
            x = x + expand(block, x, seen, (1, 1, 1))
        features.append(x)
        if down is not None:
            seen = shrink(seen, (2, 2, 2))
            x = expand(down, x, seen, (2, 2, 2)) + seen_conv(down.res_conv, x, seen, (2, 2, 2))
    return features


def dense_resenc(encoder, x, seen):
    """The shortcut's windows average zeros where voxels are hidden, and whole windows are: no divisor changes."""

    def conv_norm(part, x, seen, stride=(1, 1, 1)):
        return seen_norm(seen_conv(part.conv, x, seen, stride), seen, part.norm)

    x, features = F.leaky_relu(conv_norm(encoder.stem.convs[0], x, seen), 0.01), []
    for stage, stride in zip(encoder.stages, ((1, 1, 1), *encoder.config.strides), strict=True):
        for number, block in enumerate(stage.blocks):
            step = stride if number == 0 else (1, 1, 1)
            small = shrink(seen, step)
            y = F.leaky_relu(conv_norm(block.conv1, x, small, step), 0.01)
            y = conv_norm(block.conv2, y, small)
            if number == 0 and max(stride) > 1:
                x = F.avg_pool3d(x, step if x.shape[2] > 1 else (1, *step[1:]))
            if x.shape[1] != y.shape[1]:
                x = conv_norm(block.skip[-1], x, small)
            x, seen = F.leaky_relu(y + x, 0.01), small
        features.append(x)
    return features


DENSE = {"stunet": dense_stunet, "mednext": dense_mednext, "resenc": dense_resenc}


def unpacked(features, blocks):
    return [blocks.unpack(x, torch.zeros(x.shape[-1], dtype=x.dtype)) for x in features]


def gradients(features, probes, inputs):
    return torch.autograd.grad(sum((x * p).sum() for x, p in zip(features, probes, strict=True)), inputs)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_masked_dense_walk_with_all_gradients(case):
    config, shape, block = CASES[case]
    encoder, visible = make(config), visible_blocks(shape, block)
    voxels = torch.randn(2, config.in_channels, *shape, dtype=torch.float64, requires_grad=True)
    blocks, seen = ActiveBlocks(visible), enlarge(visible, block)
    dense = DENSE[config.name](encoder, voxels * seen, seen)
    inputs = [voxels, *encoder.parameters()]
    probes = [torch.randn_like(x) for x in dense]
    expected = gradients(dense, probes, inputs)
    for checkpointing in (False, True):
        if checkpointing:
            activation_checkpointing.apply(encoder)
        packed = unpacked(packed_features(encoder, voxels, blocks), blocks)
        for one, other in zip(packed, dense, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        for one, other in zip(gradients(packed, probes, inputs), expected, strict=True):
            # biases before a norm have no gradient but rounding, which sums over many voxels
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_no_hidden_voxel_has_any_influence_and_every_visible_one_has(case):
    config, shape, block = CASES[case]
    encoder, visible = make(config), visible_blocks(shape, block)
    blocks, seen = ActiveBlocks(visible), enlarge(visible, block)
    voxels = torch.randn(2, config.in_channels, *shape, dtype=torch.float64, requires_grad=True)
    features = packed_features(encoder, voxels, blocks)
    disturbed = torch.where(seen, voxels, 1000 * torch.randn_like(voxels))
    for one, other in zip(features, packed_features(encoder, disturbed, blocks), strict=True):
        assert torch.equal(one, other)
    reach = gradients(features, [torch.randn_like(x) for x in features], [voxels])[0]
    assert torch.equal(reach != 0, seen.expand_as(reach))


@pytest.mark.parametrize("case", ["stunet 3d", "stunet 2d", "mednext k3 3d", "mednext k5 2d", "resenc 3d", "resenc 2d"])
def test_everything_visible_is_the_encoder_itself(case):
    config, shape, block = CASES[case]
    encoder = make(config)
    grid = [n // b for n, b in zip(shape, block, strict=True)]
    blocks = ActiveBlocks(torch.ones(2, 1, *grid, dtype=torch.bool))
    voxels = torch.randn(2, config.in_channels, *shape, dtype=torch.float64)
    for one, other in zip(unpacked(packed_features(encoder, voxels, blocks), blocks), encoder(voxels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["stunet 3d", "mednext k3 3d", "stunet 2d", "resenc 3d"])
def test_bfloat16_autocast_is_close(case):
    config, shape, block = CASES[case]
    encoder, visible = make(config).float(), visible_blocks(shape, block)
    blocks = ActiveBlocks(visible)
    voxels = torch.randn(2, config.in_channels, *shape)
    exact = packed_features(encoder, voxels, blocks)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = packed_features(encoder, voxels, blocks)
    for one, other in zip(rounded, exact, strict=True):
        assert (one.float() - other).norm() < 0.05 * other.norm()
    sum(x.float().sum() for x in rounded).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in encoder.parameters())


def test_masks_are_not_mixed_up_by_threads_and_checkpointing():
    """Two active sets at once on one encoder; the backward pass recomputes with the right one."""
    config, shape, block = CASES["stunet 3d"]
    encoder, visible = make(config), visible_blocks(shape, block)
    activation_checkpointing.apply(encoder)
    voxels = torch.randn(2, config.in_channels, *shape, dtype=torch.float64)
    results = {}

    def work(name, chosen):
        x = voxels.clone().requires_grad_()
        features = packed_features(encoder, x, ActiveBlocks(chosen))
        ready.wait()
        results[name] = torch.autograd.grad(sum(f.square().sum() for f in features), x)[0]

    for together in (True, False):
        ready = threading.Barrier(2 if together else 1)
        threads = [
            threading.Thread(target=work, args=((together, i), v)) for i, v in enumerate((visible, visible.flip(0)))
        ]
        for thread in threads:
            thread.start()
            if not together:
                thread.join()
        for thread in threads:
            thread.join()
    assert all(torch.equal(results[True, i], results[False, i]) for i in range(2))
