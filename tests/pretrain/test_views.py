"""Views of a batch: which they are, that they are functions of the seeds, and what is refused before a run starts."""

import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.datasets.projection import axis_of, project
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig, TermConfig
from scanfoundry.pretrain.views import Views, check_views, view_shapes

VIT = ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(4, 8, 8))
SMALL = ContrastiveConfig(projector_hidden=16, projector_dim=8)


def data(**changes):
    given = {"sources": [{"name": "a", "path": "a"}], "crop_2d": [16, 24], "crop_3d": [8, 16, 24]}
    return DataConfig.model_validate({**given, "augment": {"preset": "strong"}, **changes})


def batch(depth=8, size=4, paired=False, step=0):
    g = torch.Generator().manual_seed(step)
    voxels = torch.randn(size, 1, depth, 16, 24, generator=g)
    names = [f"{i}" for i in range(size)]
    kinds = ["mr", "ct"] * (size // 2)
    valid = torch.ones_like(voxels, dtype=torch.bool)
    return Batch(voxels, valid, torch.arange(size) + 5, names, kinds, ["a"] * size, step, paired)


def same(one, other):
    tensors = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("voxels", "valid", "seeds"))
    return tensors and (one.keys, one.modalities) == (other.keys, other.modalities)


@pytest.mark.parametrize("depth", [1, 8])
def test_views_of_one_crop_are_its_augmentations(depth):
    config, given = data(), batch(depth)
    augment = Augment(config.augment)
    (only,) = Views(config, 1)(given)
    assert same(only, augment(given, 0))
    first, second = Views(config, 2)(given)
    assert same(first, augment(given, 0))
    assert same(second, augment(given, 1))
    assert not torch.equal(first.voxels, second.voxels)


@pytest.mark.parametrize("depth", [1, 8])
def test_a_clean_view_has_the_same_geometry_and_none_of_the_intensities(depth):
    """What is asked for beside it changes no bit of the view."""
    moved = {"flip": {}, "affine": {"probability": 1.0}, "crop": {"probability": 0.5}}
    config, given = data(augment={"default": moved | {"noise": {"probability": 1.0}}}), batch(depth)
    (view,) = Views(config, 1, clean=True)(given)
    (plain,) = Views(config, 1)(given)
    (geometry,) = Views(data(augment={"default": moved}), 1)(given)
    assert plain.clean is None
    assert same(view, plain)
    assert torch.equal(view.clean, geometry.voxels)
    assert torch.equal(view.valid, geometry.valid)
    assert not torch.equal(view.clean, view.voxels)


def test_clean_targets_need_a_change_of_intensities():
    mae = MAEConfig(decoder_dim=64, decoder_depth=1, decoder_heads=2, reconstruct="clean").build(build(VIT))
    both = SumConfig(terms=[TermConfig(objective=mae.config), TermConfig(objective=SMALL)]).build(build(VIT))
    assert both.clean
    refused(data(), mae)
    for objective in (mae, both):
        with pytest.raises(UserError, match="no augmentation of intensities"):
            refused(data(augment={"default": {"flip": {}, "affine": {}}}), objective)


@pytest.mark.parametrize("positives", ["crops", "study"])
def test_the_halves_of_a_paired_batch_are_augmented_as_the_two_views(positives):
    config, given = data(positives=positives), batch(paired=True)
    first, second = Views(config, 2)(given)
    augment, (one, other) = Augment(config.augment), given.halves()
    assert same(first, augment(one, 0))
    assert same(second, augment(other, 1))
    assert (first.keys, second.keys) == (["0", "1"], ["2", "3"])


def test_a_volume_is_seen_with_its_projection_and_an_image_twice():
    config = data(positives="projection")
    augment, views = Augment(config.augment), Views(config, 2)
    shapes = set()
    for step in range(12):
        given = batch(step=step)
        first, second = views(given)
        assert same(first, augment(given, 0))
        assert same(second, augment(project(given, axis_of(step)), 1))
        assert tuple(second.voxels.shape[2:]) in view_shapes(config, (8, 16, 24), 1)
        shapes.add(tuple(second.voxels.shape[2:]))
    assert shapes == {(1, 16, 24), (1, 8, 24), (1, 8, 16)} == set(view_shapes(config, (8, 16, 24), 1))
    assert [view.is_2d for view in views(batch(1))] == [True, True]


@pytest.mark.parametrize("positives", ["views", "crops", "projection"])
def test_views_depend_on_each_samples_seed_and_on_no_random_state(positives):
    config = data(positives=positives)
    given = batch(paired=positives == "crops")
    before = torch.get_rng_state()
    whole = Views(config, 2)(given)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    rows = [0, 2] if given.paired else [0]  # the first sample, and its partner
    alone = Batch(
        given.voxels[rows], given.valid[rows], given.seeds[rows], [given.keys[i] for i in rows],
        [given.modalities[i] for i in rows], ["a"] * len(rows), given.step, given.paired,
    )  # fmt: skip
    for one, part in zip(whole, Views(config, 2)(alone), strict=True):
        torch.testing.assert_close(one.voxels[:1], part.voxels, rtol=1e-5, atol=1e-5)


def refused(config, objective, crops=((1, 16, 24), (8, 16, 24))):
    check_views(config, objective, crops, ["ct", "mr"])


def test_two_identical_views_are_refused_and_anything_that_parts_them_is_enough():
    objective = SMALL.build(build(VIT))
    with pytest.raises(UserError, match=r"modality 'ct' would be identical.*preset to 'strong'"):
        refused(data(augment={}), objective)
    with pytest.raises(UserError, match="identical"):
        refused(data(augment={"default": {"flip": {"probability": 0.0}}}), objective)
    with pytest.raises(UserError, match="modality 'mr' would be identical"):
        refused(data(augment={"modalities": {"ct": {"flip": {}}}}), objective)
    with pytest.raises(UserError, match="identical"):
        refused(data(augment={}, positives="crops", min_overlap=1.0), objective)
    with pytest.raises(UserError, match="identical"):  # the images of the stream
        refused(data(augment={}, positives="projection"), objective)
    refused(data(augment={"default": {"flip": {}}}), objective)
    refused(data(augment={}, positives="crops"), objective)
    refused(data(augment={}, positives="study"), objective)
    refused(data(augment={"size_2d": [8, 24], "size_3d": [4, 16, 24]}), objective)
    refused(data(augment={}, positives="projection"), objective, [(8, 16, 24)])


def test_smaller_views_do_differ():
    config = data(augment={"size_3d": [4, 16, 24]})
    first, second = Views(config, 2)(batch())
    assert not torch.equal(first.voxels, second.voxels)


def test_pairs_for_an_objective_of_one_view_and_projections_of_images_are_refused():
    mae = MAEConfig(decoder_dim=64, decoder_depth=1, decoder_heads=2)
    for positives in ("crops", "study", "projection"):
        with pytest.raises(UserError, match=f"positives '{positives}' is for objectives that compare"):
            refused(data(positives=positives), mae.build(build(VIT)))
    refused(data(augment={}), mae.build(build(VIT)))
    both = SumConfig(terms=[TermConfig(objective=mae), TermConfig(objective=SMALL)]).build(build(VIT))
    refused(data(positives="crops"), both)
    with pytest.raises(UserError, match="images alone"):
        refused(data(positives="projection"), SMALL.build(build(VIT)), [(1, 16, 24)])


def test_every_plane_that_may_be_projected_must_be_encodable():
    objective = SMALL.build(build(ViTConfig(size="Ti", patch_2d=(16, 8), patch_3d=(4, 8, 8))))
    with pytest.raises(UserError, match=r"\(1, 8, 24\)"):
        refused(data(positives="projection"), objective)
    refused(data(positives="projection", augment={"preset": "strong", "size_2d": [16, 24]}), objective)
    refused(data(), objective)
    deep = SMALL.build(build(STUNetConfig(size="S")))  # total stride 32
    with pytest.raises(UserError, match="too small for STU-Net"):
        refused(data(), deep)


def test_a_term_is_asked_about_the_views_that_it_sees_alone():
    """The projection is smaller than a patch pair of MAE, which never sees it."""
    encoder = build(ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(4, 8, 8)))
    mae = MAEConfig(decoder_dim=64, decoder_depth=1, decoder_heads=2)
    both = SumConfig(terms=[TermConfig(objective=mae), TermConfig(objective=SMALL)]).build(encoder)
    config = data(positives="projection", crop_2d=None, crop_3d=[8, 8, 8])
    refused(config, both, [(8, 8, 8)])
    with pytest.raises(UserError, match="one patch"):
        both.check_shape((1, 8, 8))


def test_the_views_sizes_are_checked_not_the_crops():
    objective = MAEConfig(decoder_dim=64, decoder_depth=1, decoder_heads=2).build(build(VIT))
    refused(data(crop_2d=[17, 25], augment={"size_2d": [16, 24]}), objective, [(1, 17, 25)])
    with pytest.raises(UserError, match="multiple of"):
        refused(data(augment={"size_2d": [17, 24]}), objective)
