"""Dense contrast: its step against a restatement, the voxels that it takes, what it refuses, that it learns."""

import dataclasses

import pytest
import torch
from objectives import randomised

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.dense_contrast import DenseContrastConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.points import at_grid, draw_points
from scanfoundry.pretrain.objectives.spark import SparkConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig
from scanfoundry.pretrain.views import Views, check_views

SMALL = ResEncConfig(features=(4, 6, 8), blocks=(1, 2, 1), strides=((2, 2, 2), (1, 2, 2)))
NETWORKS = {
    "stunet": STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1), (1, 1, 1))),
    "mednext": MedNeXtConfig(size="S"),
    "resenc": SMALL,
}
HEAD = {"projector_hidden": 12, "projector_dim": 7}


def config_of(**changes):
    base = {"sources": [{"name": "shapes", "synthetic": {"shapes": [3, 8], "radius": [0.15, 0.4]}}], "batch_2d": 2,
            "batch_3d": 2, "workers": 0, "ring": 3, "positives": "study"}  # fmt: skip
    return DataConfig(**(base | changes))


def pairs(count=1, seed=0, **changes):
    """The views of the first steps of a stream."""
    data = config_of(**changes)
    with CropLoader(data, seed) as loader:
        views = Views(data, 2)
        return [views(next(loader)) for _ in range(count)]


def double(views):
    return tuple(dataclasses.replace(view, voxels=view.voxels.double()) for view in views)


@pytest.mark.parametrize("shape", [{"crop_3d": (4, 16, 8)}, {"crop_2d": (16, 24)}], ids=["3D", "2D"])
def test_the_step_equals_the_plain_restatement(shape):
    """In float64: the loss, and the gradients of every weight."""
    config = DenseContrastConfig(voxels=40, encoder_levels=(1, 2), decoder_levels=(0, 1), temperature=0.3, **HEAD)
    objective = randomised(config, SMALL)
    ((first, second),) = pairs(**shape)
    first, second = double((first, second))
    first.valid[0, ..., :4] = False
    loss, metrics = objective(first, second)
    loss.backward()
    given = {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}
    objective.zero_grad()

    losses = []
    for pair in range(2):
        encoded = [objective.encoder(view.voxels[pair : pair + 1]) for view in (first, second)]
        decoded = [objective.decoder.decode(features) for features in encoded]
        for part, level in (("encoder", 1), ("encoder", 2), ("decoder", 0), ("decoder", 1)):
            maps = [features[level][0] for features in (encoded if part == "encoder" else decoded)]
            grid = maps[0].shape[1:]
            mlp = objective.projectors[f"{part}_{level}"]
            middles = [
                [int((i + 0.5) * n / m) for i in range(m)] for n, m in zip(first.labels.shape[2:], grid, strict=True)
            ]
            labels = first.labels[pair, 0][torch.meshgrid(*map(torch.tensor, middles), indexing="ij")]
            valid = first.valid[pair, 0][torch.meshgrid(*map(torch.tensor, middles), indexing="ij")]
            chosen = draw_points(labels[None, None], first.seeds[pair : pair + 1], 40)
            rows = []
            for volume in maps:
                for index in chosen.index[0][chosen.counted[0]].tolist():
                    z, rest = divmod(index, grid[1] * grid[2])
                    y, x = divmod(rest, grid[2])
                    if valid[z, y, x]:
                        hidden = (mlp[0].weight @ volume[:, z, y, x] + mlp[0].bias).clamp(min=0)
                        out = mlp[2].weight @ hidden + mlp[2].bias
                        rows.append((out / out.norm(), int(labels[z, y, x])))
            of_map = []
            for i, (anchor, label) in enumerate(rows):
                others = [(torch.dot(anchor, z) / 0.3, of) for j, (z, of) in enumerate(rows) if j != i]
                log_sum = torch.stack([similarity for similarity, _ in others]).exp().sum().log()
                of_map.append(log_sum - torch.stack([s for s, of in others if of == label]).mean())
            losses.append(torch.stack(of_map).mean())
    plain = torch.stack(losses).mean()
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-10, atol=0)
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(given[name], parameter.grad, rtol=1e-7, atol=1e-10, msg=name)
    assert metrics["contrast"].mean().item() == pytest.approx(loss.item(), rel=1e-12)


def test_voxels_are_spread_over_labels_and_follow_from_the_seed():
    labels = torch.zeros(2, 1, 8, 16, 16, dtype=torch.uint8)
    labels[:, :, 2:6, 4:12, 4:12] = 3
    labels[:, :, 4, 6:8, 6] = 200  # two voxels
    seeds = torch.tensor([5, 6])
    points = draw_points(labels, seeds, 90)
    assert points.index.shape == (2, 90)
    for row in range(2):
        flat = labels[row].flatten()
        assert torch.equal(points.labels[row], flat[points.index[row]])
        kept = points.index[row][points.counted[row]]
        assert kept.unique().numel() == kept.numel()
        counts = flat[kept].bincount(minlength=201)
        assert (counts[0], counts[3], counts[200]) == (30, 30, 2)
        assert kept.max() > 1900  # to the end of the map
    assert not torch.equal(points.index[0], points.index[1])
    assert torch.equal(draw_points(labels[1:], seeds[1:], 90).index[0], points.index[1])  # by its own seed alone
    few = draw_points(labels[:, :, :1, :4, :4], seeds, 90)
    assert torch.equal(few.index, torch.arange(16).expand(2, -1))
    assert few.counted.all()
    volume = torch.arange(2 * 3 * 2048.0).view(2, 3, 8, 16, 16)
    assert torch.equal(points.of(volume)[1, 7], volume[1].flatten(1)[:, points.index[1, 7]])


def test_no_generator_is_moved():
    ((first, second),) = pairs(crop_3d=(4, 16, 16))
    objective = DenseContrastConfig(voxels=32, **HEAD).build(build(SMALL))
    before = torch.get_rng_state()
    loss, _ = objective(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(objective(first, second)[0], loss)


def test_labels_of_coarse_maps_are_those_of_the_middles():
    labels = torch.arange(8 * 6 * 4, dtype=torch.uint8).view(1, 1, 8, 6, 4)
    coarse = at_grid(labels, (2, 3, 4))
    assert coarse.shape == (1, 1, 2, 3, 4)
    for z in range(2):
        for y in range(3):
            assert torch.equal(coarse[0, 0, z, y], labels[0, 0, 4 * z + 2, 2 * y + 1])
    assert torch.equal(at_grid(labels, (8, 6, 4)), labels)


@pytest.mark.parametrize("shape", [{"crop_3d": (16, 32, 16)}, {"crop_2d": (32, 16)}], ids=["3D", "2D"])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_learn(name, shape):
    objective = randomised(DenseContrastConfig(voxels=32, **HEAD), NETWORKS[name]).float()
    objective(*pairs(**shape)[0])[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.encoder.parameters() if p.dim() > 1)
    assert all(p.grad is not None for p in objective.parameters())
    assert objective.trained_parts() == {"encoder": "encoder", "decoder": "decoder"}
    levels = len(objective.encoder.feature_channels)
    decoder = [0, 1, 2][: levels - 1]
    encoder = [level for level in (2, 3) if level < levels]
    assert list(objective.projectors) == [f"encoder_{n}" for n in encoder] + [f"decoder_{n}" for n in decoder]
    columns = objective.show(*pairs(**shape)[0])
    assert list(columns) == ["first appearance", "second appearance", "labels"]
    assert len({picture.shape for picture in columns.values()}) == 1


# Labels are told apart by their grey values alone, so that 60 steps are enough.
EASY = {
    "shapes": (2, 4), "radius": (0.25, 0.45), "merged": 0, "contrast": (1, 1), "texture": (0, 0.02),
    "grain": (0, 0.02), "noise": (0, 0.02), "bias": (0, 0.1), "blur": (0, 0.5), "thickness": (1, 1),
}  # fmt: skip


def trained(shuffled):
    """Losses of a short training, and by how much the cosine of the same voxel is higher on unseen draws."""
    stream = {"crop_2d": (24, 24), "batch_2d": 4, "sources": [{"name": "shapes", "synthetic": EASY}]}
    torch.manual_seed(0)
    backbone = ResEncConfig(features=(8, 12), blocks=(1, 1), strides=((1, 2, 2),))
    config = DenseContrastConfig(
        voxels=96, encoder_levels=(1,), decoder_levels=(0,), temperature=0.2, projector_hidden=32, projector_dim=16
    )
    objective = config.build(build(backbone))
    optimiser = torch.optim.AdamW(objective.parameters(), 3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for first, second in pairs(60, **stream):
        labels = first.labels
        if shuffled:
            order = torch.randperm(labels[0].numel(), generator=generator)
            labels = labels.flatten(1)[:, order].view_as(labels)
        optimiser.zero_grad()
        loss, _ = objective(dataclasses.replace(first, labels=labels), second)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        unseen = [objective(*views)[1] for views in pairs(6, seed=99, **stream)]
    apart = torch.cat([each["same_voxel"] - each["other_label"] for each in unseen])
    return losses, apart.nanmean().item()


def test_a_short_training_tells_voxels_apart_and_one_with_shuffled_labels_does_not():
    losses, apart = trained(shuffled=False)
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1
    assert apart > 0.05
    assert trained(shuffled=True)[1] < apart / 4


@pytest.mark.parametrize(
    ("options", "backbone", "said"),
    [
        ({}, ViTConfig(size="Ti"), "needs a U-Net"),
        ({"encoder_levels": (3,)}, SMALL, "encoder_levels .3.: the backbone's are 0 to 2"),
        ({"decoder_levels": (0, 2)}, SMALL, "decoder_levels .0, 2.: the backbone's are 0 to 1"),
    ],
)
def test_what_the_backbone_lacks_is_refused(options, backbone, said):
    with pytest.raises(UserError, match=said):
        DenseContrastConfig(**options).build(build(backbone))
    with pytest.raises(ValueError, match="must hold 0"):
        DenseContrastConfig(decoder_levels=(1,))


def test_streams_without_pairs_of_label_maps_are_refused():
    objective = DenseContrastConfig(**HEAD).build(build(SMALL))
    terms = SumConfig(
        terms=[{"objective": {"name": "mae", "block_3d": (4, 4, 4)}}, {"objective": {"name": "dense_contrast"}}]
    )
    crop = (8, 16, 16)
    for each in (objective, terms.build(build(SMALL))):
        assert each.labels
        assert each.views == 2
        for positives in ("study", "crops"):
            check_views(config_of(crop_3d=crop, positives=positives, min_overlap=1.0), each, [crop], ["synthetic"])
        greys = {"default": {"noise": {}, "flip": {"probability": 0}}}
        check_views(config_of(crop_3d=crop, augment=greys), each, [crop], ["synthetic"])
        read = config_of(crop_3d=crop, sources=[{"name": "a", "synthetic": {}}, {"name": "b", "path": "b"}])
        for wrong, said in (
            (read, "source 'b' has no label maps"),
            (config_of(crop_3d=crop, positives="views"), "'views' gives one; set data.positives to 'study'"),
            (config_of(crop_3d=crop, augment={"preset": "mild"}), "moves the voxels .* .affine."),
            (config_of(crop_3d=crop, augment={"size_3d": (4, 16, 16)}), "moves the voxels .* .size_3d."),
        ):
            with pytest.raises(UserError, match=said):
                check_views(wrong, each, [crop], ["synthetic"])
    first, second = pairs(crop_3d=crop)[0]
    with pytest.raises(UserError, match="sources must be `synthetic`"):
        objective(dataclasses.replace(first, labels=None), second)


OTHERS = {
    "mae": MAEConfig(block_2d=(8, 8), block_3d=(4, 8, 8)),
    "spark": SparkConfig(block_2d=(8, 8), block_3d=(4, 8, 8), decoder_width=32),
    "contrastive": ContrastiveConfig(**HEAD),
    "barlow_twins": BarlowTwinsConfig(**HEAD),
}


@pytest.mark.parametrize("shape", [{"crop_3d": (8, 16, 16)}, {"crop_2d": (16, 24)}], ids=["3D", "2D"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_objective_learns_from_drawn_scans(name, shape):
    """One appearance where it looks at one view, both where it compares two."""
    objective = OTHERS[name].build(build(SMALL))
    data = config_of(positives="views" if objective.views == 1 else "study", **shape)
    with CropLoader(data, 0) as loader:
        batch = next(loader)
        check_views(data, objective, [kind.crop for kind in loader.plan.kinds], loader.plan.modalities)
    views = Views(data, objective.views)(batch)
    assert [len(view) for view in views] == [2] * objective.views
    if objective.views == 2:
        assert not torch.equal(views[0].voxels, views[1].voxels)
        assert views[0].keys == views[1].keys
    loss, _ = objective(*views)
    loss.backward()
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in objective.encoder.parameters())
