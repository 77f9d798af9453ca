from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.augment.transforms import KINDS
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.intensity import IntensityConfig, normalise, statistics

MODALITIES = ["ct", "mr", "us", "xr", "mg", "pt", "sm", "unknown"]
STRONG = AugmentConfig(preset="strong")
INTENSITIES = [name for name in KINDS if name not in ("flip", "quarter_turn", "affine", "crop")]


def everything(probability: float = 1.0) -> AugmentConfig:
    """Every transform that may be set by default, and the CT's own."""
    on = {"probability": probability}
    switches = {name: on for name in KINDS if name not in ("window", "flip")}
    flips = {"axes": [0, 1, 2], **on}
    return AugmentConfig.model_validate(
        {"default": {**switches, "flip": flips}, "modalities": {"ct": {"invert": None, "window": on}}}
    )


def rows(batch: Batch, order: list[int]) -> Batch:
    """The batch of those samples, in that order."""
    return replace(
        batch,
        voxels=batch.voxels[order],
        valid=batch.valid[order],
        seeds=batch.seeds[order],
        keys=[batch.keys[number] for number in order],
        modalities=[batch.modalities[number] for number in order],
        sources=[batch.sources[number] for number in order],
    )


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 20, 20), (8, 11, 11)])
@pytest.mark.parametrize("config", [STRONG, everything(0.5), AugmentConfig(preset="mild")])
def test_a_view_does_not_depend_on_the_rest_of_the_batch(make_batch, config, shape):
    whole = make_batch(MODALITIES, shape)
    padded = make_batch(MODALITIES, shape, padding=2, first_seed=8)
    mixed = replace(
        rows(whole, list(range(8))),
        voxels=torch.cat([whole.voxels[:4], padded.voxels[4:]]),
        valid=torch.cat([whole.valid[:4], padded.valid[4:]]),
    )
    augment = Augment(config)
    result, matrices = augment.located(mixed, 1)
    order = [5, 2, 7, 0, 3]
    other, moved = Augment(config).located(rows(mixed, order), 1)
    assert same(other.voxels, result.voxels[order])
    assert torch.equal(other.valid, result.valid[order])
    assert torch.equal(moved, matrices[order])
    for number in range(8):
        single = augment(rows(mixed, [number]), 1)
        assert same(single.voxels[0], result.voxels[number])
        assert torch.equal(single.valid[0], result.valid[number])


def test_the_same_call_gives_the_same_bits(make_batch):
    batch = make_batch(MODALITIES, (6, 13, 12), padding=1)
    augment = Augment(everything(0.5))
    first = augment(batch, 4)
    augment(make_batch(["us"], (1, 5, 5)), 9)
    again = augment(batch, 4)
    assert torch.equal(first.voxels, again.voxels)
    assert torch.equal(first.valid, again.valid)


def test_views_and_seeds_differ(make_batch):
    batch = make_batch(["mr"] * 4, (1, 24, 24))
    views = Augment(STRONG).views(batch, 3)
    assert torch.equal(views[2].voxels, Augment(STRONG)(batch, 2).voxels)
    for number in range(4):
        assert not any(
            torch.equal(views[a].voxels[number], views[b].voxels[number]) for a, b in ((0, 1), (0, 2), (1, 2))
        )
    twins = replace(rows(batch, [0, 0]), seeds=torch.tensor([1, 2]))
    result = Augment(STRONG)(twins)
    assert not torch.equal(result.voxels[0], result.voxels[1])


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(),
        everything(0.0),
        AugmentConfig.model_validate({"modalities": {"other": {"noise": {}, "flip": {"axes": [0, 1, 2]}}}}),
    ],
)
def test_without_transforms_a_view_is_its_batch_bit_for_bit(make_batch, config):
    for batch in (make_batch(MODALITIES, (5, 9, 8), padding=1), make_batch(MODALITIES, (1, 9, 8))):
        view, matrices = Augment(config).located(batch, 3)
        assert torch.equal(view.voxels, batch.voxels)
        assert torch.equal(view.valid, batch.valid)
        assert torch.equal(matrices, torch.eye(4, dtype=torch.float64).expand(8, 4, 4))


def test_the_batch_stays_as_it_is_and_shares_no_memory(make_batch):
    for config in (AugmentConfig(), everything()):
        batch = make_batch(MODALITIES, (4, 9, 9), padding=1)
        voxels, valid = batch.voxels.clone(), batch.valid.clone()
        view = Augment(config)(batch)
        view.voxels.fill_(9)
        view.valid.fill_(False)
        assert torch.equal(batch.voxels, voxels)
        assert torch.equal(batch.valid, valid)
        assert torch.equal(view.seeds, batch.seeds)
        assert (view.keys, view.modalities, view.step) == (batch.keys, batch.modalities, batch.step)


@pytest.mark.parametrize("name", INTENSITIES)
def test_each_intensity_transform_changes_the_scan_and_not_the_padding(make_batch, name):
    modality = "ct" if name == "window" else "mr"
    batch = make_batch([modality] * 4, (6, 10, 10), padding=2)
    settings = {"probability": 1, **({"holes": [8, 8], "size": [0.4, 0.4]} if name == "erase" else {})}
    view = Augment(AugmentConfig.model_validate({"modalities": {modality: {name: settings}}}))(batch)
    assert torch.equal(view.valid, batch.valid)
    assert torch.equal(view.voxels[~batch.valid], batch.voxels[~batch.valid])
    low = batch.voxels.amin((1, 2, 3, 4), keepdim=True)
    assert (view.voxels >= low).all()
    for number in range(4):
        assert not torch.equal(view.voxels[number], batch.voxels[number])


def test_a_transform_of_one_modality_leaves_the_others(make_batch):
    batch = make_batch(MODALITIES, (1, 16, 16))
    view = Augment(AugmentConfig.model_validate({"modalities": {"us": {"speckle": {}, "flip": {"axes": [2]}}}}))(batch)
    for number, modality in enumerate(MODALITIES):
        assert torch.equal(view.voxels[number], batch.voxels[number]) == (modality != "us")


def test_ct_is_never_inverted_and_stays_in_its_window(make_batch):
    batch = make_batch(["ct"] * 16, (1, 24, 24))
    curves = {"gamma": {}, "contrast": {}, "brightness": {}}
    ordered = AugmentConfig.model_validate({"default": curves, "modalities": {"ct": {"window": {}}}})
    for view in range(5):
        result = Augment(everything())(batch, view).voxels
        assert result.min() >= -1
        assert result.max() <= 1
        monotonic = Augment(ordered)(batch, view).voxels.flatten(1)
        for source, target in zip(batch.voxels.flatten(1), monotonic, strict=True):
            assert (target[source.argsort()].diff() >= -1e-6).all()


def test_inversion_turns_bright_to_dark(make_batch):
    batch = make_batch(["xr"], (1, 12, 12))
    view = Augment(AugmentConfig.model_validate({"modalities": {"xr": {"invert": {"probability": 1}}}}))(batch)
    assert np.corrcoef(view.voxels.flatten(), batch.voxels.flatten())[0, 1] < -0.999


@pytest.mark.parametrize("shape", [(1, 17, 13), (6, 8, 9), (2, 1, 3)])
@pytest.mark.parametrize("value", [0.0, -1.0, 3.0])
def test_scans_of_one_value_stay_finite(make_batch, shape, value):
    batch = make_batch(MODALITIES, shape)
    batch.voxels.fill_(value)
    for valid in (True, False):
        batch.valid.fill_(valid)
        assert torch.isfinite(Augment(everything())(batch).voxels).all()


def test_views_have_no_gradient_but_can_be_learned_from(make_batch):
    batch = make_batch(["mr"], (1, 16, 16))
    source = replace(batch, voxels=batch.voxels.clone().requires_grad_())
    view = Augment(STRONG)(source)
    assert not view.voxels.requires_grad
    layer = torch.nn.Conv3d(1, 2, 1)
    layer(view.voxels).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_autocast_does_not_round_the_views(make_batch):
    batch = make_batch(MODALITIES, (6, 12, 12))
    expected = Augment(everything())(batch).voxels
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Augment(everything())(batch).voxels, expected)


def test_channels_get_one_geometry_and_one_noise(make_batch):
    batch = make_batch(["us"] * 4, (1, 16, 16))
    grey = replace(batch, voxels=batch.voxels.repeat(1, 3, 1, 1, 1))
    view = Augment(everything())(grey).voxels
    assert same(view[:, 0], view[:, 1])
    assert same(view[:, 0], Augment(everything())(batch).voxels[:, 0])


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 8)),
    padding=st.integers(0, 1),
    channels=st.integers(1, 3),
    modalities=st.lists(st.sampled_from(MODALITIES), min_size=1, max_size=4),
    view=st.integers(0, 2**20),
)
def test_every_transform_takes_any_shape(make_batch, shape, padding, channels, modalities, view):
    batch = make_batch(modalities, shape, channels, padding)
    result = Augment(everything())(batch, view)
    assert result.voxels.shape == batch.voxels.shape
    assert result.voxels.dtype == torch.float32
    assert torch.isfinite(result.voxels).all()


def test_the_middle_of_a_real_scan_stays_where_the_matrix_says(real_data, make_batch):
    nibabel = pytest.importorskip("nibabel")
    path = sorted((real_data / "msd_task04_hippocampus" / "imagesTr").glob("*.nii.gz"))[0]
    scan = np.asanyarray(nibabel.load(path).dataobj).T.astype(np.float32)
    voxels = torch.from_numpy(normalise(scan, "mr", statistics(scan), IntensityConfig()))[None, None]
    shape = tuple(voxels.shape[2:])
    batch = replace(make_batch(["mr"], shape), voxels=voxels)
    config = AugmentConfig.model_validate({"preset": "strong", "default": dict.fromkeys(INTENSITIES, None)})
    for number in range(6):
        view, matrices = Augment(config).located(batch, number)
        index = np.argwhere(view.valid[0, 0].numpy())[::97]
        where = index @ matrices[0, :3, :3].numpy().T + matrices[0, :3, 3].numpy()
        near = np.round(where).astype(int).clip(0, np.array(shape) - 1)
        a, b = view.voxels[0, 0].numpy()[tuple(index.T)], voxels[0, 0].numpy()[tuple(near.T)]
        assert np.corrcoef(a, b)[0, 1] > 0.85
