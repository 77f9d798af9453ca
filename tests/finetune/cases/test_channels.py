"""Several channels on one grid, missing ones, hidden ones."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.channels import covered, hide_channels, on_grid, read_channels, stacked


@dataclass(frozen=True)
class Held:
    """A source in memory."""

    scan: Scan

    def __str__(self):
        return "held.nii.gz"

    def read(self):
        return self.scan


def scan(shape, affine, value):
    """A scan (D, H, W) of `value(x, y, z)` in world coordinates."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)[..., ::-1]
    world = nib.affines.apply_affine(affine, grid)
    spacing = nib.affines.voxel_sizes(affine)[::-1]
    return Scan(value(*np.moveaxis(world, -1, 0)).astype(np.float32)[None], tuple(map(float, spacing)), affine)


def ramp(x, y, z):
    return 0.3 * x - 0.7 * y + 0.5 * z + 20


def affine_of(angles, spacing, shift):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = shift
    return affine


angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.7, 1.4)] * 3)


@given(angles, spacings, angles)
@settings(max_examples=25, deadline=None)
def test_a_channel_lands_at_its_place_in_the_world(first_angles, spacing, angles):
    first = scan((8, 9, 10), affine_of(first_angles, spacing, (3, -2, 5)), ramp)
    centre = nib.affines.apply_affine(first.affine, (4.5, 4, 3.5))
    other = affine_of(angles, (0.9, 1.0, 1.1), (0, 0, 0))
    other[:3, 3] = centre - other[:3, :3] @ (23.5, 23.5, 23.5)  # around all of the first
    moving = scan((48, 48, 48), other, ramp)
    assert covered(first, moving) == 1
    found = on_grid(first, moving, moving.voxels[0], -1)
    assert np.abs(found - first.voxels[0]).max() < 1e-3  # a linear function survives linear interpolation


def test_outside_is_fill_and_no_overlap_is_refused():
    first = scan((6, 6, 6), np.eye(4), ramp)
    half = np.eye(4)
    half[0, 3] = 3
    beside = scan((6, 6, 6), half, ramp)
    assert covered(first, beside) == pytest.approx(0.5)
    found = on_grid(first, beside, beside.voxels[0], -9)
    assert (found[:, :, :3] == -9).all()
    assert np.allclose(found[:, :, 3:], first.voxels[0][:, :, 3:], atol=1e-4)
    half[0, 3] = 60
    with pytest.raises(UserError, match=r"held\.nii\.gz: does not overlap with the first channel"):
        read_channels([Held(first), Held(scan((6, 6, 6), half, ramp))])
    image = Scan(np.zeros((1, 1, 5, 5), np.uint8), (1, 1, 1))
    with pytest.raises(UserError, match="another shape and no affine"):
        read_channels([None, Held(first), Held(image)])


def test_channels_are_normalised_each_by_itself():
    rng = np.random.default_rng(0)
    ct = scan((5, 6, 7), np.eye(4), lambda *p: rng.uniform(-1000, 1000, p[0].shape))
    mr = scan((5, 6, 7), np.eye(4), lambda *p: rng.uniform(0, 9, p[0].shape))
    image, fill = stacked([ct, None, mr], ["ct", "mr", "mr"], IntensityConfig(), "luminance")
    assert image.shape == (3, 5, 6, 7)
    assert np.allclose(image[0], ct.voxels[0] / 1000, atol=1e-5)
    assert (image[1] == np.float32(fill)).all()
    assert image[2].mean() < 0.3  # z-scores of the brighter part
    assert -2.5 < fill < -0.9


@given(st.integers(1, 4), st.integers(2, 5), st.floats(0, 0.99), st.integers(0, 99), st.data())
@settings(max_examples=60, deadline=None)
def test_channels_are_hidden_whole_and_never_all(batch, channels, share, seed, data):
    rows = st.lists(st.booleans(), min_size=channels, max_size=channels).filter(any)
    present = torch.tensor([data.draw(rows) for _ in range(batch)])
    images = torch.rand(batch, channels, 2, 3, 4)
    fills = torch.arange(batch) - 9.0
    found = hide_channels(images.clone(), present, fills, np.random.default_rng(seed), share)
    for row in range(batch):
        kept = [bool((found[row, c] == images[row, c]).all()) for c in range(channels)]
        gone = [bool((found[row, c] == fills[row]).all()) for c in range(channels)]
        assert all(a != b for a, b in zip(kept, gone, strict=True))
        assert any(kept)
        assert all(there for there, stays in zip(present[row], kept, strict=True) if stays)
        if share == 0:
            assert kept == present[row].tolist()


def test_channels_are_hidden_about_as_often_as_said():
    images, present = torch.ones(4000, 3, 1, 1, 1), torch.ones(4000, 3, dtype=torch.bool)
    found = hide_channels(images, present, torch.zeros(4000), np.random.default_rng(0), 0.3)
    share = float((found == 0).float().mean())
    assert share == pytest.approx(0.3 - 0.3**3 / 3, abs=0.01)  # where all three were hidden, one is shown again
