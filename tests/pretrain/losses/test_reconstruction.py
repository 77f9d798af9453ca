"""The loss against naive loops in float64, gradients too; what is padding never counts."""

import json
import math

import pytest
import torch

from scanfoundry.pretrain.losses.reconstruction import masked_mse, patch_normalise, reconstruction_loss

EPS = 1e-6


@pytest.fixture
def case():
    """Prediction, patches (2, 5, 6, 2), masked (2, 5), valid (2, 5, 6, 1), with one patch all padding."""
    torch.manual_seed(0)
    patches = torch.randn(2, 5, 6, 2, dtype=torch.float64) * 3 + 1
    prediction = torch.randn_like(patches).requires_grad_()
    masked = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)
    valid = torch.rand(2, 5, 6, 1) > 0.3
    valid[0, 2] = False
    return prediction, patches, masked, valid


def naive_loss(prediction, patches, masked, valid, normalise, eps):
    """Double loop over patches and voxels with Python numbers; gives the loss and its gradient."""
    errors, places = [], []
    for b in range(patches.shape[0]):
        for p in range(patches.shape[1]):
            kept = [(v, c) for v in range(6) for c in range(2) if valid[b, p, v, 0]]
            values = [float(patches[b, p, v, c]) for v, c in kept]
            if not masked[b, p] or not values:
                continue
            mean = sum(values) / len(values)
            variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
            for (v, c), value in zip(kept, values, strict=True):
                target = (value - mean) / math.sqrt(variance + eps) if normalise else value
                errors.append(float(prediction.detach()[b, p, v, c]) - target)
                places.append((b, p, v, c))
    gradient = torch.zeros_like(patches)
    for place, error in zip(places, errors, strict=True):
        gradient[place] = 2 * error / len(errors)
    return sum(e * e for e in errors) / len(errors), gradient


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_loss_and_gradient_equal_the_naive_loop(case, normalise, eps):
    prediction, patches, masked, valid = case
    loss, of_each = reconstruction_loss(prediction, patches, masked, valid, normalise, eps)
    expected, gradient = naive_loss(prediction, patches, masked, valid, normalise, eps)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for b in range(2):
        one = slice(b, b + 1)
        own, _ = naive_loss(prediction[one], patches[one], masked[one], valid[one], normalise, eps)
        assert of_each[b].item() == pytest.approx(own, rel=1e-12)
    assert not of_each.requires_grad
    torch.testing.assert_close(torch.autograd.grad(loss, prediction)[0], gradient, rtol=1e-10, atol=1e-14)


def test_without_padding_it_is_maes_formula(case):
    prediction, patches, masked, valid = case
    target = patches.flatten(2)
    target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + EPS) ** 0.5
    per_patch = (prediction.flatten(2) - target).square().mean(dim=-1)
    expected = (per_patch * masked).sum() / masked.sum()
    ours, _ = reconstruction_loss(prediction, patches, masked, torch.ones_like(valid), True, EPS)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_voxels_of_the_padding_change_neither_target_nor_loss(case):
    prediction, patches, masked, valid = case
    disturbed = torch.where(valid, patches, torch.full_like(patches, 1e6))
    one, other = (reconstruction_loss(prediction, x, masked, valid, True, EPS)[0] for x in (patches, disturbed))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(other, prediction)[0]
    assert not gradient[~valid.expand_as(gradient)].any()


def test_nothing_to_score_is_zero_with_zero_gradient_and_no_number_for_the_sample(case):
    prediction, patches, masked, valid = case
    loss, of_each = reconstruction_loss(prediction, patches, masked, torch.zeros_like(valid), True, EPS)
    assert loss.item() == 0
    assert of_each.isnan().all()
    assert not torch.autograd.grad(loss, prediction)[0].any()


def test_eps_floors_flat_patches():
    noise = 1e-3 * torch.randn(1, 1, 500, 1, dtype=torch.float64)
    valid = torch.ones_like(noise, dtype=torch.bool)
    assert patch_normalise(noise, valid, 1e-12).std().item() == pytest.approx(1, rel=1e-3)
    assert patch_normalise(noise, valid, 1e-2).std().item() < 0.011
    assert not patch_normalise(torch.full_like(noise, 5.0), valid, 1e-6).any()


def test_half_precision_is_scored_in_float32(case):
    prediction, patches, masked, valid = case
    half = prediction.detach().bfloat16()
    loss, _ = reconstruction_loss(half, patches.bfloat16(), masked, valid, True, EPS)
    assert loss.dtype == torch.float32
    expected, _ = reconstruction_loss(half.double(), patches.bfloat16().double(), masked, valid, True, EPS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_masked_mse_counts_channels_once_each(case):
    _, patches, masked, valid = case
    loss, _ = masked_mse(patches + 2, patches, masked, valid)
    assert loss.item() == pytest.approx(4)


def test_ranks_with_more_padding_count_less(ranks):
    """Two ranks' mean is the loss of one on both batches, gradient included, however the padding lies."""
    code = """
import json
import torch
from scanfoundry.pretrain.distributed.world import join, sum_over_ranks
from scanfoundry.pretrain.losses.reconstruction import masked_mse
world = join("cpu", 1)
generator = torch.Generator().manual_seed(0)
patches, shift = (torch.randn(4, 5, 6, 1, generator=generator, dtype=torch.float64) for _ in range(2))
valid = torch.rand(4, 5, 6, 1, generator=generator) < torch.tensor([0.9, 0.1, 0.0, 0.3]).view(4, 1, 1, 1)
masked = torch.ones(4, 5, dtype=torch.bool)
rows = slice(2 * world.rank, 2 * world.rank + 2) if world.size == 2 else slice(None)
weight = torch.ones((), dtype=torch.float64, requires_grad=True)
loss, _ = masked_mse(weight * patches[rows], patches[rows] + shift[rows], masked[rows], valid[rows])
gradient, = torch.autograd.grad(loss, weight)
both = sum_over_ranks(torch.stack((loss.detach(), gradient)), world) / world.size
if world.is_main:
    print(json.dumps(both.tolist()))
"""
    one, two = (json.loads(ranks(code, size)) for size in (1, 2))
    assert two == pytest.approx(one, rel=1e-12)
    assert one[0] > 0
