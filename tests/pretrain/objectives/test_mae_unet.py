"""MAE on U-Nets against the step written plainly; random ratios, blocks of one voxel, options that are refused."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from objectives import randomised

from scanfoundry.backbones.layers.segmentation import UNet
from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.engine import activation_checkpointing
from scanfoundry.pretrain.masking import block_mask, masked_count
from scanfoundry.pretrain.objectives.mae import MAEConfig

LAYOUT_OF_L = ResEncConfig(features=(2, 3, 4, 5, 6, 6))  # blocks and strides are ResEnc-L's
SMALL = ResEncConfig(in_channels=2, features=(4, 6, 8), blocks=(1, 2, 1), strides=((2, 2, 2), (1, 2, 2)))


def make_batch(shape, channels=1, seeds=(4, 9)):
    """Random crops with padding at the end of W in the first and an excluded box in the second."""
    torch.manual_seed(1)
    voxels = torch.randn(len(seeds), channels, *shape, dtype=torch.float64)
    valid = torch.ones(len(seeds), 1, *shape, dtype=torch.bool)
    valid[0, ..., -5:] = False
    valid[1, ..., 2:5, 1:6] = False
    names = [str(seed) for seed in seeds]
    return Batch(voxels, valid, torch.tensor(seeds), names, ["mr"] * len(seeds), names, 0)


def norm(x, state, name):
    mean, var = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, unbiased=False)
    weight, bias = (state[f"{name}.{key}"].view(1, -1, 1, 1, 1) for key in ("weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def conv(x, state, name, stride=1):
    weight = state[f"{name}.weight"]
    return F.conv3d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def spread(x, state, name, flat):
    """A transposed convolution whose kernel is its stride: each voxel becomes a block; on one slice their mean."""
    weight, (b, _, d, h, w) = state[f"{name}.weight"], x.shape
    weight = weight.mean(2, keepdim=True) if flat else weight
    _, features, i, j, k = weight.shape
    blocks = torch.einsum("bcdhw,coijk->bodihjwk", x, weight)
    return blocks.reshape(b, features, d * i, h * j, w * k) + state[f"{name}.bias"].view(1, -1, 1, 1, 1)


def resenc_unet(state, x, config):
    """ResEnc and its decoder in plain functional code: the predicted voxels; a 2D scan as a volume of one slice."""
    flat = x.shape[2] == 1
    x = leaky(norm(conv(x, state, "encoder.stem.convs.0.conv"), state, "encoder.stem.convs.0.norm"))
    features = []
    for stage, count in enumerate(config.blocks):
        for block in range(count):
            key = f"encoder.stages.{stage}.blocks.{block}"
            stride = list(config.strides[stage - 1]) if stage and block == 0 else [1, 1, 1]
            stride[0] = 1 if flat else stride[0]
            y = leaky(norm(conv(x, state, f"{key}.conv1.conv", stride), state, f"{key}.conv1.norm"))
            y = norm(conv(y, state, f"{key}.conv2.conv"), state, f"{key}.conv2.norm")
            x = F.avg_pool3d(x, stride, stride) if max(stride) > 1 else x
            project = next((k for k in state if k.startswith(f"{key}.skip") and k.endswith("conv.weight")), None)
            if project:
                name = project.removesuffix(".conv.weight")
                x = norm(conv(x, state, f"{name}.conv"), state, f"{name}.norm")
            x = leaky(y + x)
        features.append(x)
    for level, skip in enumerate(reversed(features[:-1])):
        x = torch.cat((spread(x, state, f"decoder.transpconvs.{level}", flat), skip), dim=1)
        name = f"decoder.stages.{level}.convs.0"
        x = leaky(norm(conv(x, state, f"{name}.conv"), state, f"{name}.norm"))
    return conv(x, state, "head")


def hidden_voxels(batch, block, ratio, shape):
    """By loops: (B, 1, D, H, W) bool."""
    grid = [n // b for n, b in zip(shape, block, strict=True)]
    hidden = torch.zeros(len(batch), 1, *shape, dtype=torch.bool)
    for sample, mask in enumerate(block_mask(batch.seeds, tuple(grid), ratio)):
        for z, y, x in mask[0].nonzero().tolist():
            box = [slice(i * b, (i + 1) * b) for i, b in zip((z, y, x), block, strict=True)]
            hidden[sample, 0, box[0], box[1], box[2]] = True
    return hidden


@pytest.mark.parametrize("hide", ["zeros", "token"])
@pytest.mark.parametrize(
    ("backbone", "shape", "block"),
    [
        (LAYOUT_OF_L, (32, 32, 64), (16, 8, 16)),
        (LAYOUT_OF_L, (1, 64, 32), (1, 16, 8)),
        (SMALL, (4, 8, 24), (2, 4, 8)),
    ],
    ids=["layout of L", "layout of L in 2D", "two channels"],
)
def test_the_step_on_a_resenc_equals_the_plain_restatement(backbone, shape, block, hide):
    """Loss and gradients of every weight, in float64."""
    blocks = {"block_2d": block[1:]} if shape[0] == 1 else {"block_3d": block}
    objective = randomised(MAEConfig(hide=hide, **blocks), backbone)
    batch = make_batch(shape, backbone.in_channels)
    loss, metrics = objective(batch)
    loss.backward()

    state = {key: value.detach().clone().requires_grad_() for key, value in objective.named_parameters()}
    hidden = hidden_voxels(batch, block, 0.75, shape)
    filled = state["holes.mask_token"] if hide == "token" else torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    seen = batch.voxels * ~hidden + filled * hidden
    predicted = resenc_unet(state, seen, backbone)
    scored = (hidden & batch.valid).expand_as(predicted)
    plain = (predicted - batch.voxels)[scored].square().mean()
    plain.backward()

    torch.testing.assert_close(loss, plain, rtol=1e-10, atol=0)
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-7, atol=1e-10, msg=name)
    for sample, error in enumerate(metrics["reconstruction"].tolist()):
        own = (predicted - batch.voxels)[sample][scored[sample]].square().mean().item()
        assert error == pytest.approx(own, rel=1e-10)


NETWORKS = {
    "stunet": STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1), (1, 1, 1))),
    "mednext": MedNeXtConfig(size="S"),
    "resenc": SMALL.model_copy(update={"in_channels": 1}),
}
DECODER_BLOCKS = {"stunet": 5, "mednext": 4 + 4 * 2, "resenc": 2}


@pytest.mark.parametrize("shape", [(16, 32, 16), (1, 32, 16)])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_learn_and_hold_each_weight_once(name, shape):
    """The decoder's names are those of the backbone's own network; computed twice, it has the same gradients."""
    objective = randomised(MAEConfig(block_2d=(8, 4), block_3d=(8, 8, 4)), NETWORKS[name]).float()
    encoder = objective.encoder
    assert objective.own_decoder
    assert isinstance(objective.decoder, UNet)
    whole = encoder.decoder(1)
    parts = [whole.part_of(key) for key in whole.state_dict()]
    assert objective.decoder.state_dict().keys() == {key for part, key in parts if part == "decoder"}
    batch = make_batch(shape)
    batch = dataclasses.replace(batch, voxels=batch.voxels.float())
    objective(batch)[0].backward()
    lean = copy.deepcopy(objective)
    lean.zero_grad()
    activation_checkpointing.apply(lean)
    lean(batch)[0].backward()
    assert sum("forward" in vars(module) for module in lean.decoder.modules()) == DECODER_BLOCKS[name]
    for one, other in zip(objective.parameters(), lean.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)
    for part in (encoder, objective.head):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters() if p.dim() > 1)
    assert all(p.grad is not None for p in objective.decoder.parameters())


@pytest.mark.parametrize("shape", [(4, 8, 24), (1, 8, 24)])
def test_a_hidden_voxel_changes_nothing_but_its_own_target(shape):
    objective = randomised(MAEConfig(block_2d=(4, 8), block_3d=(2, 4, 8), mask_ratio=(0.3, 0.8)), SMALL)
    batch = make_batch(shape, 2)
    mask = objective.mask(batch)
    where = tuple(mask[0, 0].nonzero()[0].tolist())
    place = tuple(i * b for i, b in zip(where, objective.patch(shape[0] == 1), strict=True))
    assert batch.valid[(0, 0, *place)]
    changed = dataclasses.replace(batch, voxels=batch.voxels.clone())
    changed.voxels[(0, 0, *place)] += 7.0
    prediction = objective.predict(batch.voxels, mask)
    assert torch.equal(objective.predict(changed.voxels, mask), prediction)
    (one, _), (other, _) = objective(batch), objective(changed)
    count = (hidden_voxels(batch, objective.patch(shape[0] == 1), (0.3, 0.8), shape) & batch.valid).sum() * 2
    error = (prediction - batch.voxels)[(0, 0, *place)]
    torch.testing.assert_close(other - one, ((error - 7.0) ** 2 - error**2) / count, rtol=1e-9, atol=1e-12)


def test_a_random_ratio_is_each_crops_own():
    """By its seed alone: not by its neighbours in the batch, so not by the world size or a resume."""
    seeds, grid = torch.arange(60), (4, 5, 6)
    masks = block_mask(seeds, grid, (0.4, 0.8))
    counts = masks.flatten(1).sum(1)
    assert counts.min() >= masked_count(120, 0.4)
    assert counts.max() <= masked_count(120, 0.8)
    assert counts.unique().numel() > 20
    for seed in (0, 7, 59):
        assert torch.equal(block_mask(seeds[seed : seed + 1], grid, (0.4, 0.8))[0], masks[seed])


def test_normalised_targets_with_a_random_ratio_equal_loops():
    block, ratio = (2, 4, 8), (0.3, 0.8)
    objective = randomised(MAEConfig(block_3d=block, mask_ratio=ratio, normalise_target=True), SMALL)
    batch = make_batch((4, 8, 24), 2, seeds=(4, 9, 12))
    with torch.no_grad():
        loss, _ = objective(batch)
        mask = objective.mask(batch)
        prediction = objective.predict(batch.voxels, mask)
    assert mask.flatten(1).sum(1).unique().numel() > 1
    errors = []
    for sample, z, y, x in mask[:, 0].nonzero().tolist():
        box = (sample, slice(None), *(slice(i * b, (i + 1) * b) for i, b in zip((z, y, x), block, strict=True)))
        known = batch.valid[box].expand(2, *block)
        values = batch.voxels[box][known]
        deviation = (values.var() if len(values) > 1 else torch.tensor(0.0)) + 1e-6
        errors += ((prediction[box][known] - (values - values.mean()) / deviation.sqrt()) ** 2).tolist()
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


def test_blocks_of_one_voxel_hide_pixels():
    config = MAEConfig(block_2d=(1, 1), block_3d=(1, 1, 1), mask_ratio=0.5)
    objective = randomised(config, SMALL)
    for shape in ((4, 8, 8), (1, 8, 8)):
        batch = make_batch(shape, 2)
        mask = objective.mask(batch)
        assert mask.shape == (2, 1, *shape)
        assert mask.flatten(1).sum(1).tolist() == [mask[0].numel() // 2] * 2
        pictures = objective.reconstruct(batch)
        assert torch.equal(pictures.visible != 0, ~mask.expand_as(batch.voxels))
        assert objective(batch)[0].isfinite()
    with pytest.raises(UserError, match="normalise_target makes every block of one voxel"):
        MAEConfig(block_2d=(1, 1), normalise_target=True).build(build(SMALL))


@pytest.mark.parametrize(
    ("option", "backbone", "said"),
    [
        ({"decoder_depth": 2}, SMALL, "decoder_depth is for transformers: 'resenc'"),
        ({"gradient_weight": 0.5}, SMALL, "gradient_weight is for transformers: 'resenc'"),
        ({"hide": "zeros"}, ViTConfig(size="Ti"), "hide is for convolutional backbones: 'vit'"),
        ({"mask_ratio": (0.4, 0.8)}, ViTConfig(size="Ti"), "give one number"),
        ({"block_3d": (16, 16, 16)}, ViTConfig(size="Ti"), r"block_3d is \(16, 16, 16\).*patch \(8, 8, 8\)"),
        ({"block_2d": (8, 16)}, ViTConfig(size="Ti"), r"block_2d is \(8, 16\).*patch \(16, 16\)"),
    ],
)
def test_options_of_another_kind_of_backbone_are_refused(option, backbone, said):
    with pytest.raises(UserError, match=said):
        MAEConfig(**option).build(build(backbone))


def test_what_is_left_out_follows_the_family():
    convolutional, transformer = (MAEConfig().filled(family) for family in ("convolutional", "transformer"))
    assert (convolutional.block_3d, convolutional.block_2d, convolutional.hide) == ((16, 16, 16), (16, 16), "zeros")
    assert (convolutional.normalise_target, transformer.normalise_target) == (False, True)
    assert MAEConfig(normalise_target=True, hide="token").filled("convolutional").hide == "token"
    assert transformer.block_3d is None
    MAEConfig(block_3d=(8, 8, 8)).build(build(ViTConfig(size="Ti")))  # its patch
    with pytest.raises(ValueError, match="must rise"):
        MAEConfig(mask_ratio=(0.8, 0.4))
