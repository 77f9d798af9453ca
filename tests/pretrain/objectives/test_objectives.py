"""Promises of every objective, over the registry; a new one adds its small case to SMALL."""

import dataclasses

import pytest
import torch

from scanforge.backbones.registry import build
from scanforge.backbones.stunet import STUNetConfig
from scanforge.backbones.vit import ViTConfig
from scanforge.configs.errors import UserError
from scanforge.datasets.batch import Batch
from scanforge.pretrain.objectives import OBJECTIVES
from scanforge.pretrain.objectives.mae import MAEConfig
from scanforge.pretrain.objectives.spark import SparkConfig

STRIDES = ((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))  # total (2, 4, 4)
VIT = ViTConfig(size="Ti", in_channels=2, patch_2d=(4, 4), patch_3d=(2, 4, 4))
STUNET = STUNetConfig(size="S", in_channels=2, strides=STRIDES)
SMALL = {
    "mae": (VIT, MAEConfig(decoder_dim=64, decoder_depth=2, decoder_heads=2), (1, 4, 4), (2, 4, 4)),
    "spark": (STUNET, SparkConfig(block_2d=(4, 8), block_3d=(2, 4, 4), decoder_width=128), (1, 4, 8), (2, 4, 4)),
}
SHAPES = [(1, 8, 24), (4, 8, 12)]  # (D, H, W), non-cubic grids


def make(name, **changes):
    backbone, config, *_ = SMALL[name]
    torch.manual_seed(0)
    return config.model_copy(update=changes).build(build(backbone))


def block_of(name, shape):
    return SMALL[name][2 if shape[0] == 1 else 3]


def make_batch(shape, size=3, padded=False):
    """Smooth random crops; padded: the last rows of W of the first sample lie outside the scan."""
    torch.manual_seed(1)
    coarse = torch.randn(size, 2, *(max(n // 2, 1) for n in shape), dtype=torch.float64)
    valid = torch.ones(size, 1, *shape, dtype=torch.bool)
    if padded:
        valid[0, ..., -5:] = False
    voxels = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=False) * valid
    names = [str(i) for i in range(size)]
    return Batch(voxels, valid, torch.arange(size) + 11, names, ["mr"] * size, ["a"] * size, 0)


def hidden_voxels(mask, block):
    """By loops: (B, D, H, W) bool, True where a block of the mask is hidden."""
    b, _, d, h, w = mask.shape
    out = torch.zeros(b, d * block[0], h * block[1], w * block[2], dtype=torch.bool)
    for n, z, y, x in mask[:, 0].nonzero().tolist():
        low = (z * block[0], y * block[1], x * block[2])
        out[(n, *(slice(i, i + s) for i, s in zip(low, block, strict=True)))] = True
    return out


def as_image(prediction, shape, block):
    """By loops: patches (B, L, V, C) laid out in space, d outermost; images pass."""
    if prediction.dim() == 5:
        return prediction
    image = prediction.new_zeros(prediction.shape[0], prediction.shape[-1], *shape)
    d, h, w = (n // p for n, p in zip(shape, block, strict=True))
    for token in range(d * h * w):
        z, y, x = token // (h * w), token // w % h, token % w
        for voxel in range(block[0] * block[1] * block[2]):
            i, j, k = voxel // (block[1] * block[2]), voxel // block[2] % block[1], voxel % block[2]
            place = (z * block[0] + i, y * block[1] + j, x * block[2] + k)
            image[:, :, place[0], place[1], place[2]] = prediction[:, token, voxel]
    return image


def spied_loss(objective, batch):
    """The loss and the prediction that it came from."""
    seen, predict = [], objective.predict

    def spy(voxels, mask):
        seen.append(predict(voxels, mask))
        return seen[0]

    objective.predict = spy
    try:
        loss, metrics = objective(batch)
    finally:
        del objective.predict
    return loss, metrics, seen[0]


def test_every_objective_has_a_small_case_and_its_configs_name():
    assert SMALL.keys() == OBJECTIVES.keys()
    assert all(SMALL[name][1].name == name for name in OBJECTIVES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_hidden_voxel_reaches_the_prediction_and_every_visible_one_does(name, shape):
    objective, batch = make(name).double(), make_batch(shape)
    mask = objective.mask(batch)
    hidden = hidden_voxels(mask, block_of(name, shape))[:, None]
    voxels = batch.voxels.clone().requires_grad_()
    prediction = objective.predict(voxels, mask)
    disturbed = torch.where(hidden, 100 * torch.randn_like(batch.voxels), batch.voxels)
    assert torch.equal(objective.predict(disturbed, mask), prediction)
    reach = torch.autograd.grad((prediction * torch.randn_like(prediction)).sum(), voxels)[0]
    assert torch.equal((reach != 0).all(dim=1), ~hidden[:, 0])
    assert torch.equal((reach != 0).any(dim=1), ~hidden[:, 0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_looks_at_exactly_the_hidden_valid_voxels_in_their_places(name, shape, padded):
    """With raw targets the gradient of the prediction is 2 (prediction - voxel) / n, place by place."""
    objective, batch = make(name, normalise_target=False).double(), make_batch(shape, padded=padded)
    block = block_of(name, shape)
    scored = hidden_voxels(objective.mask(batch), block)[:, None] & batch.valid
    loss, _, prediction = spied_loss(objective, batch)
    gradient = as_image(torch.autograd.grad(loss, prediction)[0], shape, block)
    difference = as_image(prediction.detach(), shape, block) - batch.voxels
    scored = scored.expand_as(difference)
    expected = torch.where(scored, 2 * difference / scored.sum(), torch.zeros_like(difference))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert loss.item() == pytest.approx(difference[scored].square().mean().item(), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_normalised_loss_has_no_gradient_on_visible_or_padded_voxels(name, shape):
    objective, batch = make(name).double(), make_batch(shape, padded=True)
    block = block_of(name, shape)
    loss, _, prediction = spied_loss(objective, batch)
    gradient = as_image(torch.autograd.grad(loss, prediction)[0], shape, block)
    scored = hidden_voxels(objective.mask(batch), block)[:, None] & batch.valid
    assert torch.equal(gradient != 0, scored.expand_as(gradient))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_set_of_weights_learns_images_and_volumes(name):
    """Overfits one batch of each kind, alternating."""
    objective = make(name)
    batches = []
    for shape in SHAPES:
        batch = make_batch(shape, size=2)
        batches.append(Batch(batch.voxels.float(), batch.valid, batch.seeds, batch.keys, ["mr"] * 2, ["a"] * 2, 0))
    optimiser = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    history = {shape: [] for shape in SHAPES}
    for _ in range(18):
        for shape, batch in zip(SHAPES, batches, strict=True):
            optimiser.zero_grad()
            loss, metrics = objective(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimiser.step()
            assert loss.dim() == 0
            assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
            history[shape].append(loss.item())
    for losses in history.values():
        assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_do_not_depend_on_how_the_batch_is_divided_nor_on_global_random_state(name, shape):
    objective, batch = make(name).double().eval(), make_batch(shape, size=4)
    with torch.no_grad():
        whole, _ = objective(batch)
        before = torch.get_rng_state()
        parts = []
        for half in (slice(0, 2), slice(2, 4)):
            part = Batch(
                batch.voxels[half],
                batch.valid[half],
                batch.seeds[half],
                batch.keys[half],
                batch.modalities[half],
                batch.sources[half],
                0,
            )
            parts.append(objective(part)[0])
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_reconstructions_are_in_image_space(name, shape, normalise):
    objective, batch = make(name, normalise_target=normalise).double(), make_batch(shape)
    block = block_of(name, shape)
    pictures = objective.reconstruct(batch)
    hidden = hidden_voxels(objective.mask(batch), block)[:, None].expand_as(batch.voxels)
    assert torch.equal(pictures.mask, hidden)
    assert torch.equal(pictures.target, batch.voxels)
    assert torch.equal(pictures.visible, batch.voxels * ~hidden)
    assert torch.equal(pictures.prediction[~hidden], batch.voxels[~hidden])
    raw = as_image(objective.predict(batch.voxels, objective.mask(batch)).detach(), shape, block)
    steps = [range(0, n, p) for n, p in zip(shape, block, strict=True)]
    for z, y, x in [(z, y, x) for z in steps[0] for y in steps[1] for x in steps[2]]:
        box = (0, slice(None), slice(z, z + block[0]), slice(y, y + block[1]), slice(x, x + block[2]))
        if not hidden[box].all():
            continue
        true, expected = batch.voxels[box], raw[box]
        if normalise:
            expected = expected * (true.var() + 1e-6).sqrt() + true.mean()
        torch.testing.assert_close(pictures.prediction[box], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_weights_or_autocast_take_float32_batches(name, shape, autocast):
    objective, batch = make(name), make_batch(shape)
    if not autocast:
        objective.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = objective(dataclasses.replace(batch, voxels=batch.voxels.float()))
    loss.backward()
    exact, _ = make(name).double()(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_crops_that_cannot_be_masked_are_refused(name):
    objective = make(name)
    block = block_of(name, SHAPES[0])
    with pytest.raises(UserError, match="multiple of"):
        objective.check_shape((1, block[1] * 2, block[2] + 1))
    with pytest.raises(UserError, match=r"larger crop|enlarge the crop"):
        objective.check_shape(block)
    with pytest.raises(UserError, match="needs"):
        SMALL[name][1].build(build({"mae": STUNET, "spark": VIT}[name]))
