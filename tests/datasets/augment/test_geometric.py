"""Geometry against scipy's interpolation with the returned matrix, and against numpy's flips and turns."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.draw import Drawer
from scanfoundry.datasets.augment.geometric import plan
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.augment.resample import stays_complete


def of(**switches) -> AugmentConfig:
    sizes = {name: switches.pop(name) for name in ("size_2d", "size_3d") if name in switches}
    return AugmentConfig.model_validate({"default": switches, **sizes})


def corner_weights(position):
    """Indices and weights of the 2^3 voxels that a linear interpolation at `position` (3,) reads."""
    below = np.floor(position).astype(int)
    for corner in np.ndindex(2, 2, 2):
        yield below + corner, np.prod(np.where(np.array(corner), position - below, 1 - (position - below)))


def reference(scan, valid, matrix, size, low):
    """View (C, *size) and valid of one sample: scipy for the voxels, a loop for what is valid."""
    view = np.stack([
        ndimage.affine_transform(channel, matrix, output_shape=size, order=1, mode="nearest") for channel in scan
    ])  # fmt: skip
    seen = np.zeros(size, bool)
    shape = np.array(valid.shape)
    for index in np.ndindex(*size):
        position = (matrix @ [*index, 1.0])[:3]
        if ((position < -0.5) | (position > shape - 0.5)).any():
            continue
        corners = corner_weights(position.clip(0, shape - 1))
        seen[index] = sum(weight for where, weight in corners if not valid[tuple(where.clip(0, shape - 1))]) < 1e-3
    return np.where(seen, view, low), seen


AFFINE = {"rotation": 30, "tilt": 20, "scale": [0.85, 1.25], "anisotropy": 1.1, "translation": 0.1}
CASES = {
    "rotation": ({"affine": AFFINE}, (9, 12, 11)),
    "rotation of an image": ({"affine": AFFINE}, (1, 18, 15)),
    "crop": ({"crop": {"scale": [0.3, 0.9]}}, (10, 9, 12)),
    "crop, turned": (
        {"crop": {"scale": [0.3, 0.9]}, "flip": {"axes": [0, 1, 2]}, "quarter_turn": {}, "size_3d": (7, 10, 10)},
        (9, 12, 11),
    ),
    "crop of an image": ({"crop": {"scale": [0.3, 0.9]}, "size_2d": (20, 16)}, (1, 17, 19)),
    "all": (
        {"affine": AFFINE, "crop": {}, "flip": {"axes": [0, 1, 2]}, "quarter_turn": {}, "size_3d": (8, 11, 11)},
        (9, 12, 10),
    ),
    "all of an image": (
        {"affine": AFFINE, "crop": {}, "flip": {"axes": [0, 1, 2]}, "quarter_turn": {}, "size_2d": (16, 16)},
        (1, 18, 13),
    ),
}


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_views_are_what_scipy_makes_of_the_matrix(make_batch, case, padding):
    switches, shape = CASES[case]
    batch = make_batch(["mr", "us", "ct", "xr"], shape, channels=2, padding=padding)
    view, matrices = Augment(of(**switches)).located(batch, 3)
    size = tuple(view.voxels.shape[2:])
    interpolated = 0
    for number in range(len(batch)):
        scan, valid = batch.voxels[number].numpy(), batch.valid[number, 0].numpy()
        low = -1.0 if batch.modalities[number] == "ct" else scan.min()
        # A view much coarser than its scan is low-passed first, which this reference does not know.
        step = np.linalg.norm(matrices[number, :3, :3].numpy(), axis=1)
        assert (step <= 1.3).all(), "choose another case"
        voxels, seen = reference(scan, valid, matrices[number].numpy(), size, low)
        mismatch = seen != view.valid[number, 0].numpy()
        assert mismatch.mean() < 2e-3  # positions within rounding of an edge
        np.testing.assert_allclose(view.voxels[number].numpy()[:, ~mismatch], voxels[:, ~mismatch], atol=2e-4)
        interpolated += int(seen.sum())
    assert interpolated > 0.1 * view.valid.numel()


def test_flips_and_turns_are_numpys_bit_for_bit(make_batch):
    config = of(flip={"axes": [0, 1, 2]}, quarter_turn={"probability": 0.7})
    batch = make_batch(["mr"] * 24, (5, 8, 8), padding=1)
    view, matrices = Augment(config).located(batch)
    geometry = plan(Drawer(config)(batch.seeds.tolist(), batch.modalities, 0), (5, 8, 8), (5, 8, 8))
    assert geometry.exact.all()
    assert set(geometry.turns) == {0, 1, 2, 3}
    for number in range(24):
        axes = [axis for axis in range(3) if geometry.flips[number, axis]]
        for source, result in ((batch.voxels, view.voxels), (batch.valid, view.valid)):
            expected = np.rot90(np.flip(source[number, 0].numpy(), axes), geometry.turns[number], (1, 2))
            assert np.array_equal(result[number, 0].numpy(), expected)
        # The matrix says the same.
        index = np.indices((5, 8, 8)).reshape(3, -1)
        where = np.round(matrices[number, :3, :3].numpy() @ index + matrices[number, :3, 3:].numpy()).astype(int)
        assert np.array_equal(batch.voxels[number, 0].numpy()[tuple(where)], view.voxels[number, 0].numpy().ravel())


@pytest.mark.parametrize("axes", [[], [2], [0, 1]])
def test_only_allowed_axes_are_flipped_and_each_half_of_the_time(axes):
    drawn = Drawer(of(flip={"axes": axes}))(list(range(400)), ["mr"] * 400, 0)
    flipped = plan(drawn, (4, 4, 4), (4, 4, 4)).flips.mean(0)
    for axis in range(3):
        assert 0.4 < flipped[axis] < 0.6 if axis in axes else flipped[axis] == 0


def test_images_are_never_turned_out_of_their_plane():
    config = of(affine={"tilt": 90, "rotation": 90, "translation": 0.5}, crop={}, flip={"axes": [0]}, size_2d=(9, 9))
    drawn = Drawer(config)(list(range(200)), ["us"] * 200, 0)
    matrices = plan(drawn, (1, 12, 10), (1, 9, 9)).matrices
    assert np.allclose(matrices[:, 0, 1:], 0, atol=1e-12)
    assert np.allclose(matrices[:, 1:3, 0], 0, atol=1e-12)
    assert np.allclose(np.abs(matrices[:, 0, 0]), 1)


def test_a_smaller_view_without_crop_is_cut_out_and_a_larger_one_padded(make_batch):
    batch = make_batch(["mr"] * 6, (1, 12, 12))
    view, matrices = Augment(of(size_2d=(7, 16))).located(batch)
    assert view.voxels.shape == (6, 1, 1, 7, 16)
    starts = set()
    for number in range(6):
        first = int(matrices[number, 1, 3])
        starts.add(first)
        assert torch.equal(view.voxels[number, 0, 0, :, 2:14], batch.voxels[number, 0, 0, first : first + 7])
        assert view.valid[number, 0, 0, :, 2:14].all()
        outside = ~view.valid[number, 0]
        assert outside.sum() == 7 * 4
        assert (view.voxels[number, 0][outside] == batch.voxels[number].min()).all()
    assert len(starts) > 1


def test_crops_have_the_area_and_the_ratio_asked_for():
    config = of(crop={"scale": [0.2, 0.5], "ratio": 1.2}, size_3d=(8, 8, 8))
    drawn = Drawer(config)(list(range(500)), ["mr"] * 500, 0)
    for crop, lengths in (((20, 20, 20), 3), ((1, 20, 20), 2)):
        size = (8 if lengths == 3 else 1, 8, 8)
        sides = np.diagonal(plan(drawn, crop, size).matrices, axis1=1, axis2=2)[:, :3] * size
        fraction = np.prod(sides, 1) / np.prod(crop)
        assert 0.2 - 1e-9 <= fraction.min() < 0.22
        assert 0.48 < fraction.max() <= 0.5 + 1e-9
        ratio = sides[:, 1] / sides[:, 2]
        assert 1 / 1.2 - 1e-9 <= ratio.min() < 0.85
        assert 1.18 < ratio.max() <= 1.2 + 1e-9


def test_structures_grow_by_the_scale(make_batch):
    batch = make_batch(["mr"], (1, 41, 41))
    batch.voxels[:] = -1
    batch.voxels[..., 15:26, 15:26] = 1
    view = Augment(of(affine={"rotation": 0, "anisotropy": 1, "scale": [1.5, 1.5]}))(batch)
    assert abs((view.voxels > 0).sum() / (batch.voxels > 0).sum() - 1.5**2) < 0.2


def test_what_is_made_much_coarser_is_low_passed_first(make_batch):
    batch = make_batch(["mr"], (1, 64, 64))
    batch.voxels[:] = torch.randn(batch.voxels.shape, generator=torch.Generator().manual_seed(0))
    view = Augment(of(crop={"scale": [1, 1], "ratio": 1}, size_2d=(16, 16)))(batch)
    means = batch.voxels.view(16, 4, 16, 4).mean((1, 3))
    assert view.voxels.std() < 0.4
    assert np.corrcoef(view.voxels.flatten(), means.flatten())[0, 1] > 0.7


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(2, 6), st.integers(1, 9), st.integers(1, 9)),
    padding=st.integers(0, 2),
    view=st.integers(0, 1000),
)
@example(shape=(1, 1, 2), size=(2, 1, 1), padding=1, view=0)  # once, a view of one voxel was the background itself
def test_any_shape_gives_a_view_of_the_size_asked_for(make_batch, shape, size, padding, view):
    config = AugmentConfig(preset="strong", size_3d=size, size_2d=size[1:])
    batch = make_batch(["ct", "mr", "us", "sm"], shape, padding=padding)
    result, matrices = Augment(config).located(batch, view)
    expected = (1, *size[1:]) if shape[0] == 1 else size
    assert tuple(result.voxels.shape) == (4, 1, *expected)
    assert tuple(result.valid.shape) == (4, 1, *expected)
    assert torch.isfinite(result.voxels).all()
    for number in range(4):
        low = -1.0 if number == 0 else batch.voxels[number].min()
        assert (result.voxels[number][~result.valid[number]] == low).all()
    assert torch.isfinite(matrices).all()


@pytest.mark.parametrize(("shape", "size"), [((1, 20, 24), None), ((9, 12, 10), None), ((9, 12, 10), (7, 12, 14))])
@pytest.mark.parametrize("switches", [{}, {"affine": {"scale": (0.8, 1.6)}}, {"crop": {}}, {"quarter_turn": {}}])
def test_the_host_knows_which_views_of_whole_crops_are_whole(make_batch, shape, size, switches):
    """A GPU is not asked: corners, by the same operations, say what all voxels would."""
    config = of(**switches, **({} if size is None else {"size_3d": size}))
    batch = make_batch(["mr"] * 40, shape)
    view, _ = Augment(config).located(batch)
    drawn = Drawer(config)(batch.seeds.tolist(), batch.modalities, 0)
    told = stays_complete(plan(drawn, shape, tuple(view.voxels.shape[2:])), shape)
    whole = view.valid.flatten(1).all(1).numpy()
    assert np.array_equal(told, whole)
    if "affine" in switches:
        assert set(whole.tolist()) >= {False}
