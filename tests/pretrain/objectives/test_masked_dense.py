"""The masked walk through STU-Net against plain loops, and that nothing hidden is seen (2D, 3D, non-cubic)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanforge.backbones.stunet import STUNetConfig, STUNetEncoder
from scanforge.pretrain.masking import block_mask, enlarge
from scanforge.pretrain.objectives.masked_dense import level_masks, masked_features, masked_instance_norm

STRIDES = ((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1))  # total (2, 4, 8)
CASES = [((4, 12, 16), (2, 4, 8)), ((8, 8, 24), (4, 4, 8)), ((1, 12, 32), (1, 4, 8))]


def random_affine(module):
    for name, parameter in module.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=0.5)
    return module


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return random_affine(STUNetEncoder(STUNetConfig(size="S", in_channels=2, strides=STRIDES)).double())


def masks_for(encoder, shape, block):
    grid = tuple(n // b for n, b in zip(shape, block, strict=True))
    hidden = block_mask(torch.tensor([1, 2]), grid, 0.5)
    strides = encoder.feature_strides(is_2d=shape[0] == 1)
    return hidden, level_masks((~hidden).double(), block, strides)


def naive_norm(x, mask, weight, bias, eps=1e-5):
    """Sample by sample, channel by channel, over the list of visible voxels."""
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        seen = mask[b, 0].bool()
        for c in range(x.shape[1]):
            values = x[b, c][seen]
            mean, var = values.mean(), values.var(unbiased=False)
            out[b, c][seen] = (values - mean) / torch.sqrt(var + eps) * weight[c] + bias[c]
    return out


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 6)])
def test_masked_norm_equals_the_naive_loop(shape):
    norm = random_affine(nn.Sequential(nn.InstanceNorm3d(3, affine=True)).double())[0]
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(2, 1, *shape) > 0.5).double()
    ours, plain = masked_instance_norm(x, mask, norm), naive_norm(x, mask, norm.weight, norm.bias)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    probe, inputs = torch.randn_like(ours), (x, norm.weight, norm.bias)
    for one, other in zip(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((plain * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_masked_norm_with_everything_visible_is_instance_norm_also_far_from_zero():
    norm = nn.InstanceNorm3d(3, affine=True)
    x = torch.randn(2, 3, 6, 6, 6) + 300
    torch.testing.assert_close(masked_instance_norm(x, torch.ones(2, 1, 6, 6, 6), norm), norm(x), rtol=1e-3, atol=1e-3)


def test_masked_norm_keeps_bfloat16_and_computes_in_float32():
    norm = nn.InstanceNorm3d(3, affine=True).bfloat16()
    x = torch.randn(2, 3, 8, 8, 8).bfloat16() + 8
    mask = (torch.rand(2, 1, 8, 8, 8) > 0.5).bfloat16()
    ours = masked_instance_norm(x, mask, norm)
    assert ours.dtype == torch.bfloat16
    exact = naive_norm(x.double(), mask, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-2, atol=1e-2)


def restated(state, x, hidden, block, strides):
    """The masked walk in plain code: padded 3D convolutions, loops for the norm, masks by nearest neighbour."""

    def conv(x, key, seen, stride=(1, 1, 1)):
        weight = state[f"{key}.weight"]
        return F.conv3d(x, weight, state[f"{key}.bias"], stride, padding=weight.shape[-1] // 2) * seen

    features, seen = [], (~enlarge(hidden, block)).double()
    x = x * seen
    for level, stride in enumerate(((1, 1, 1), *strides)):
        for axis, step in enumerate(stride, start=2):
            if seen.shape[axis] > 1:
                seen = seen.index_select(axis, torch.arange(0, seen.shape[axis], step))
        key = f"conv_blocks_context.{level}.0"
        norms = [(state[f"{key}.norm{i}.weight"], state[f"{key}.norm{i}.bias"]) for i in (1, 2)]
        y = F.leaky_relu(naive_norm(conv(x, f"{key}.conv1", seen, stride), seen, *norms[0]), 0.01)
        y = naive_norm(conv(y, f"{key}.conv2", seen), seen, *norms[1])
        x = F.leaky_relu(y + conv(x, f"{key}.conv3", seen, stride), 0.01)
        features.append(x)
    return features


@pytest.mark.parametrize(("shape", "block"), CASES)
def test_masked_features_equal_the_plain_restatement_gradients_included(encoder, shape, block):
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    hidden, masks = masks_for(encoder, shape, block)
    ours = masked_features(encoder, x, masks)
    plain = restated(dict(encoder.named_parameters()), x, hidden, block, STRIDES)
    probes = [torch.randn_like(f) for f in ours]
    gradients = []
    for features in (ours, plain):
        total = sum((f * p).sum() for f, p in zip(features, probes, strict=True))
        gradients.append(torch.autograd.grad(total, list(encoder.parameters())))
    for one, other in zip([*ours, *gradients[0]], [*plain, *gradients[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "block"), CASES)
def test_no_hidden_voxel_reaches_any_feature_and_every_visible_one_does(encoder, shape, block):
    hidden, masks = masks_for(encoder, shape, block)
    x = torch.randn(2, 2, *shape, dtype=torch.float64, requires_grad=True)
    features = masked_features(encoder, x, masks)
    disturbed = torch.where(enlarge(hidden, block), torch.randn_like(x) * 100, x)
    for one, other, mask in zip(features, masked_features(encoder, disturbed, masks), masks, strict=True):
        assert torch.equal(one, other)
        assert not (one * (1 - mask)).any()
    reach = torch.autograd.grad(sum((f * torch.randn_like(f)).sum() for f in features), x)[0]
    assert torch.equal(reach != 0, ~enlarge(hidden, block).expand_as(reach))


@pytest.mark.parametrize("shape", [(4, 12, 16), (1, 12, 32)])
def test_with_everything_visible_it_is_the_encoder(encoder, shape):
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    everything = torch.ones(2, 1, 1, 1, 1, dtype=torch.float64)
    masks = level_masks(everything, shape, encoder.feature_strides(is_2d=shape[0] == 1))
    for one, other in zip(masked_features(encoder, x, masks), encoder(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
