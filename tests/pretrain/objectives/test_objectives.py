"""Promises of every objective, over the registry, then those of the masked ones; a new one adds its case to SMALL."""

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch

from scanfoundry.backbones import primus
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig, ResEncEncoder
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.objectives import objectives
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.dense_contrast import DenseContrastConfig
from scanfoundry.pretrain.objectives.distil import DistilConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.masked import MaskedObjective, hidden_indices, take
from scanfoundry.pretrain.objectives.spark import SparkConfig
from scanfoundry.pretrain.objectives.token_distillation import TokenDistillationConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig, TermConfig

STRIDES = ((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))  # total (2, 4, 4)
VIT = ViTConfig(size="Ti", in_channels=2, patch_2d=(4, 4), patch_3d=(2, 4, 4))
STUNET = STUNetConfig(size="S", in_channels=2, strides=STRIDES)
RESENC = ResEncConfig(in_channels=2, features=(16, 32, 48), blocks=(1, 2, 2), strides=((2, 2, 2), (1, 2, 2)))
MAE = MAEConfig(decoder_dim=64, decoder_depth=2, decoder_heads=2)
PRIMUS = PrimusConfig(size="S", in_channels=2, patch=(2, 4, 4), grid=(2, 2, 3))
UNET_MAE = MAEConfig(block_2d=(4, 8), block_3d=(2, 4, 4), mask_ratio=0.6)
CONTRASTIVE = ContrastiveConfig(projector_hidden=64, projector_dim=32)
TEACHERS = tempfile.TemporaryDirectory()  # until the tests end
save_release(Path(TEACHERS.name), {"encoder": build(STUNET).state_dict()}, ReleaseInfo(backbone=STUNET), [])
TOKENS = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 2}
SMALL = {
    "mae": (VIT, MAE),
    "mae resenc": (RESENC, UNET_MAE),
    "mae primus": (PRIMUS, MAEConfig()),
    "spark": (STUNET, SparkConfig(block_2d=(4, 8), block_3d=(2, 4, 4), decoder_width=128)),
    "spark own": (RESENC, SparkConfig(block_2d=(4, 8), block_3d=(2, 4, 4), decoder="own")),
    "contrastive": (STUNET, CONTRASTIVE),
    "barlow_twins": (VIT, BarlowTwinsConfig(projector_hidden=64, projector_dim=4, mixed=1.0)),
    "dense_contrast": (RESENC, DenseContrastConfig(voxels=48, projector_hidden=32, projector_dim=16)),
    "distil": (VIT, DistilConfig(teacher=TEACHERS.name)),
    "token_distillation": (VIT, TokenDistillationConfig(**TOKENS, momentum=0.9)),
    "sum": (VIT, SumConfig(terms=[TermConfig(objective=MAE), TermConfig(weight=0.5, objective=CONTRASTIVE)])),
}
BLOCKS = {
    **{"mae": ((1, 4, 4), (2, 4, 4)), "mae resenc": ((1, 4, 8), (2, 4, 4))},
    **{"mae primus": ((1, 4, 4), (2, 4, 4)), "spark": ((1, 4, 8), (2, 4, 4))},
    **{"spark own": ((1, 4, 8), (2, 4, 4))},
}  # 2D, 3D
MASKED = list(BLOCKS)
SHAPES = [(1, 8, 24), (4, 8, 12)]  # (D, H, W), non-cubic grids


class OneLevel(ResEncEncoder):
    """Neither tokens nor a decoder."""

    def decoder(self, num_classes):
        return None


def make(name, **changes):
    backbone, config = SMALL[name]
    torch.manual_seed(0)
    return config.model_copy(update=changes).build(build(backbone))


def block_of(name, shape):
    return BLOCKS[name][shape[0] > 1]


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


def make_views(objective, shape, size=3):
    """As many float32 views as the objective takes: the first batch of `make_batch`, then it with noise."""
    first = make_batch(shape, size)
    if objective.labels:
        each = torch.arange(shape[0] * shape[1] * shape[2]) % 251  # of many labels, so that the least loss is near 0
        first = dataclasses.replace(first, labels=each.to(torch.uint8).view(1, 1, *shape).repeat(size, 1, 1, 1, 1))
    views = [first, dataclasses.replace(first, voxels=first.voxels + 0.1 * torch.randn_like(first.voxels))]
    return [dataclasses.replace(view, voxels=view.voxels.float()) for view in views[: objective.views]]


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


def spied_loss(objective, batch, block):
    """The loss, and what gives the gradient of its prediction as images: all voxels, or the hidden patches in place."""
    seen = []
    name = "predict" if hasattr(objective, "predict") else "score"
    original = getattr(objective, name)

    def spy(*given):
        if name == "score":
            seen.append(given[0])
            return original(*given)
        seen.append(original(*given))
        return seen[-1]

    setattr(objective, name, spy)
    try:
        loss, metrics = objective(batch)
    finally:
        delattr(objective, name)
    return loss, metrics, seen[0], lambda x: in_place(x, objective.mask(batch), batch.voxels.shape[2:], block)


def in_place(patches, mask, shape, block):
    """By loops: the hidden patches (B, n, V, C), in order, laid out in space among zeros; images pass."""
    if patches.dim() == 5:
        return patches
    everywhere = patches.new_zeros(len(patches), mask[0].numel(), *patches.shape[2:])
    for sample, row in enumerate(mask.flatten(1).tolist()):
        hidden = [place for place, masked in enumerate(row) if masked]
        for number, place in enumerate(hidden):
            everywhere[sample, place] = patches[sample, number]
    return as_image(everywhere, shape, block)


def test_every_objective_has_a_small_case_and_its_configs_name():
    assert {name.split()[0] for name in SMALL} == objectives().keys()
    assert all(SMALL[name][1].name == name.split()[0] for name in SMALL)
    assert [name for name in SMALL if isinstance(make(name), MaskedObjective)] == MASKED


@pytest.mark.parametrize("name", SMALL)
def test_one_set_of_weights_learns_images_and_volumes(name):
    """Overfits one batch of each kind, alternating."""
    objective = make(name)
    kinds = {shape: make_views(objective, shape, size=2 if objective.views == 1 else 4) for shape in SHAPES}
    optimiser = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    history = {shape: [] for shape in SHAPES}
    for step in range(18):
        for shape, views in kinds.items():
            optimiser.zero_grad()
            loss, metrics = objective(*views)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimiser.step()
            objective.after_step(step / 18)
            assert loss.dim() == 0
            for value in metrics.values():
                assert value.shape in [(), (len(views[0]),)]
                assert not value.requires_grad
            history[shape].append(loss.item())
    for losses in history.values():
        assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SMALL)
def test_losses_are_a_function_of_the_views_and_leave_random_states_alone(name, shape):
    objective = make(name)
    views = make_views(objective, shape)
    before = torch.get_rng_state()
    (one, metrics), (other, again) = objective(*views), objective(*views)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, other)
    assert metrics.keys() == again.keys()
    assert all(torch.equal(metrics[key], again[key]) for key in metrics)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_weights_or_autocast_take_float32_batches(name, shape, autocast):
    objective = make(name)
    views = make_views(objective, shape)
    if not autocast:
        objective.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = objective(*views)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    if name in MASKED:  # elsewhere a batch norm over three near pairs takes the rounding with their difference
        exact, _ = make(name).double()(*(dataclasses.replace(view, voxels=view.voxels.double()) for view in views))
        assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SMALL)
def test_pictures_are_columns_of_one_size_without_gradients(name, shape):
    objective = make(name)
    columns = objective.show(*make_views(objective, shape))
    assert len(columns) >= 2
    for picture in columns.values():
        assert picture.shape == (3, 2, *shape)
        assert picture.isfinite().all()
        assert not picture.requires_grad


@pytest.mark.parametrize("name", SMALL)
def test_crops_that_the_encoder_cannot_take_are_refused(name):
    objective = make(name)
    for shape in SHAPES:
        objective.check_shape(shape)
    for shape in ((1, 2, 2), (1, 3, 1)):
        with pytest.raises(UserError, match=r"allowed is|take a larger crop"):
            objective.check_shape(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_no_hidden_voxel_reaches_the_prediction_and_every_visible_one_does(name, shape):
    objective, batch = make(name).double(), make_batch(shape)
    mask = objective.mask(batch)
    hidden = hidden_voxels(mask, block_of(name, shape))[:, None]
    voxels = batch.voxels.clone().requires_grad_()
    prediction = objective.predict_patches(voxels, mask)
    disturbed = torch.where(hidden, 100 * torch.randn_like(batch.voxels), batch.voxels)
    assert torch.equal(objective.predict_patches(disturbed, mask), prediction)
    places = hidden_indices(mask)
    torch.testing.assert_close(
        objective.predict_hidden(voxels, mask, places), take(prediction, places), rtol=1e-10, atol=1e-12
    )
    reach = torch.autograd.grad((prediction * torch.randn_like(prediction)).sum(), voxels)[0]
    assert torch.equal((reach != 0).all(dim=1), ~hidden[:, 0])
    assert torch.equal((reach != 0).any(dim=1), ~hidden[:, 0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_the_loss_looks_at_exactly_the_hidden_valid_voxels_in_their_places(name, shape, padded):
    """With raw targets the gradient of the prediction is 2 (prediction - voxel) / n, place by place."""
    objective, batch = make(name, normalise_target=False).double(), make_batch(shape, padded=padded)
    block = block_of(name, shape)
    scored = hidden_voxels(objective.mask(batch), block)[:, None] & batch.valid
    loss, metrics, prediction, as_picture = spied_loss(objective, batch, block)
    gradient = as_picture(torch.autograd.grad(loss, prediction)[0])
    difference = as_picture(prediction.detach()) - batch.voxels
    scored = scored.expand_as(difference)
    expected = torch.where(scored, 2 * difference / scored.sum(), torch.zeros_like(difference))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert loss.item() == pytest.approx(difference[scored].square().mean().item(), rel=1e-10)
    for sample, error in enumerate(metrics["reconstruction"].tolist()):
        own = difference[sample][scored[sample]]
        assert error == pytest.approx(own.square().mean().item(), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_normalised_loss_has_no_gradient_on_visible_or_padded_voxels(name, shape):
    objective, batch = make(name).double(), make_batch(shape, padded=True)
    block = block_of(name, shape)
    loss, _, prediction, as_picture = spied_loss(objective, batch, block)
    gradient = as_picture(torch.autograd.grad(loss, prediction)[0])
    scored = hidden_voxels(objective.mask(batch), block)[:, None] & batch.valid
    assert torch.equal(gradient != 0, scored.expand_as(gradient))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_losses_do_not_depend_on_how_the_batch_is_divided(name, shape):
    objective, batch = make(name).double().eval(), make_batch(shape, size=4)
    with torch.no_grad():
        whole, _ = objective(batch)
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
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_a_clean_crop_is_the_target_and_is_never_seen(name, shape):
    """The augmented one is the only input; pictures show it as what is visible."""
    objective = make(name, normalise_target=False, reconstruct="clean").double()
    batch = make_batch(shape, padded=True)
    batch = dataclasses.replace(batch, clean=batch.voxels + 0.5 * torch.randn_like(batch.voxels))
    hidden = hidden_voxels(objective.mask(batch), block_of(name, shape))[:, None]
    loss, _, prediction, as_picture = spied_loss(objective, batch, block_of(name, shape))
    difference = as_picture(prediction.detach()) - batch.clean
    scored = (hidden & batch.valid).expand_as(difference)
    assert loss.item() == pytest.approx(difference[scored].square().mean().item(), rel=1e-10)
    other = dataclasses.replace(batch, clean=torch.randn_like(batch.clean))
    assert torch.equal(spied_loss(objective, other, block_of(name, shape))[2], prediction)
    pictures = objective.reconstruct(batch)
    assert torch.equal(pictures.target, batch.clean)
    assert torch.equal(pictures.visible, batch.voxels * ~hidden)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_reconstructions_are_in_image_space(name, shape, normalise):
    objective, batch = make(name, normalise_target=normalise).double(), make_batch(shape)
    block = block_of(name, shape)
    pictures = objective.reconstruct(batch)
    hidden = hidden_voxels(objective.mask(batch), block)[:, None].expand_as(batch.voxels)
    assert torch.equal(pictures.mask, hidden)
    assert torch.equal(pictures.target, batch.voxels)
    assert torch.equal(pictures.visible, batch.voxels * ~hidden)
    assert torch.equal(pictures.prediction[~hidden], batch.voxels[~hidden])
    raw = as_image(objective.predict_patches(batch.voxels, objective.mask(batch)).detach(), shape, block)
    steps = [range(0, n, p) for n, p in zip(shape, block, strict=True)]
    for z, y, x in [(z, y, x) for z in steps[0] for y in steps[1] for x in steps[2]]:
        box = (0, slice(None), slice(z, z + block[0]), slice(y, y + block[1]), slice(x, x + block[2]))
        if not hidden[box].all():
            continue
        true, expected = batch.voxels[box], raw[box]
        if normalise:
            expected = expected * (true.var() + 1e-6).sqrt() + true.mean()
        torch.testing.assert_close(pictures.prediction[box], expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def _a_small_primus(monkeypatch):
    monkeypatch.setitem(primus.WIDTH_DEPTH_HEADS, "S", (72, 3, 2))


@pytest.mark.parametrize("name", MASKED)
def test_crops_that_cannot_be_masked_are_refused(name):
    objective = make(name)
    block = block_of(name, SHAPES[0])
    with pytest.raises(UserError, match="multiple of"):
        objective.check_shape((1, block[1] * 2, block[2] + 1))
    with pytest.raises(UserError, match=r"larger crop|enlarge the crop"):
        objective.check_shape(block)
    with pytest.raises(UserError, match="needs"):
        SMALL[name][1].build(build(VIT) if name.startswith("spark") else OneLevel(RESENC))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_flat_patches_and_samples_of_padding_alone_are_finite(name, shape):
    """The first sample is constant, the second is padding: its own error is no number, and it counts for nothing."""
    objective, batch = make(name).double(), make_batch(shape)
    batch.voxels[0] = 3.0
    batch.valid[1] = False
    loss, metrics = objective(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    of_each = metrics["reconstruction"]
    assert torch.equal(of_each.isnan(), torch.tensor([False, True, False]))
    others = dataclasses.replace(
        batch, voxels=batch.voxels[[0, 2]], valid=batch.valid[[0, 2]], seeds=batch.seeds[[0, 2]]
    )
    torch.testing.assert_close(objective(others)[0], loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MASKED)
def test_pictures_are_the_scan_its_visible_part_and_the_reconstruction(name, shape):
    objective, batch = make(name).double(), make_batch(shape)
    columns, pictures = objective.show(batch), objective.reconstruct(batch)
    assert list(columns) == ["scan", "scan: visible", "scan: reconstruction"]
    assert torch.equal(columns["scan"], batch.voxels)
    assert torch.equal(columns["scan: reconstruction"], pictures.prediction)
    for sample in range(len(batch)):
        seen = columns["scan: visible"][sample]
        assert torch.equal(seen[~pictures.mask[sample]], batch.voxels[sample][~pictures.mask[sample]])
        grey = (batch.voxels[sample].min() + batch.voxels[sample].max()) / 2
        assert (seen[pictures.mask[sample]] == grey).all()
