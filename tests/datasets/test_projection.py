"""Projections against plain loops over lines of voxels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, SamplingPlan
from scanfoundry.datasets.projection import How, axis_of, project


def batch_of(voxels: NDArray[np.float32], valid: NDArray[np.bool_], step: int = 0) -> Batch:
    count = len(voxels)
    names = [f"k{number}" for number in range(count)]
    seeds = torch.arange(count) * 12345678901
    return Batch(torch.from_numpy(voxels), torch.from_numpy(valid), seeds, names, ["ct"] * count, names, step)


def by_loops(
    voxels: NDArray[np.float32], valid: NDArray[np.bool_], axis: int, how: How
) -> tuple[NDArray, NDArray[np.bool_]]:
    """One sample (C, D, H, W) and (1, D, H, W): its projection in float64 and where that is valid, (C, 1, h, w)."""
    rows, columns = (each for each in range(3) if each != axis)
    size = voxels.shape[1 + rows], voxels.shape[1 + columns]
    pixels, seen = np.zeros((len(voxels), 1, *size)), np.zeros((1, 1, *size), bool)
    for row in range(size[0]):
        for column in range(size[1]):
            for channel in range(len(voxels)):
                line = []
                for depth in range(voxels.shape[1 + axis]):
                    place = [0, 0, 0]
                    place[rows], place[columns], place[axis] = row, column, depth
                    if valid[(0, *place)]:
                        line.append(float(voxels[(channel, *place)]))
                if line:
                    seen[0, 0, row, column] = True
                    pixels[channel, 0, row, column] = max(line) if how == "max" else sum(line) / len(line)
    inside = pixels[:, seen[0]]
    if inside.size:
        spread = inside.std()
        pixels = (pixels - inside.mean()) / spread if spread > 1e-5 else np.zeros_like(pixels)
        pixels[:, ~seen[0]] = pixels[:, seen[0]].min()
    return pixels, seen


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 7)),
    st.sampled_from([1, 3]),
    st.sampled_from(["whole", "box", "holes", "none", "flat"]),
    st.sampled_from(["mean", "max"]),
)
def test_projections_are_those_of_loops(
    seed: int, shape: tuple[int, int, int], channels: int, kind: str, how: How
) -> None:
    rng = np.random.default_rng(seed)
    voxels = rng.normal(size=(2, channels, *shape)).astype(np.float32)
    valid = np.ones((2, 1, *shape), bool)
    if kind == "box":
        valid[1, :, :, : shape[1] // 2] = False
        valid[0, :, shape[0] // 2 :] = False
    elif kind == "holes":
        valid = rng.random((2, 1, *shape)) < 0.4
    elif kind == "none":
        valid[1] = False
    elif kind == "flat":
        voxels[1] = 0.7
    poisoned = np.where(valid, voxels, np.float32(1e4))
    for axis in range(3):
        made = project(batch_of(poisoned, valid), axis, how)
        rows, columns = (shape[each] for each in range(3) if each != axis)
        assert made.voxels.shape == (2, channels, 1, rows, columns)
        assert made.valid.shape == (2, 1, 1, rows, columns)
        assert (made.is_2d, made.voxels.dtype, made.valid.dtype) == (True, torch.float32, torch.bool)
        for sample in range(2):
            pixels, seen = by_loops(voxels[sample], valid[sample], axis, how)
            assert np.array_equal(made.valid[sample].numpy(), seen)
            assert np.allclose(made.voxels[sample].numpy(), pixels, rtol=1e-4, atol=1e-4)


def test_what_goes_with_a_projection() -> None:
    rng = np.random.default_rng(0)
    batch = batch_of(rng.normal(size=(5, 1, 4, 6, 8)).astype(np.float32), np.ones((5, 1, 4, 6, 8), bool), step=11)
    made = project(batch, 1)
    assert (made.keys, made.sources, made.step) == (batch.keys, batch.sources, 11)
    assert made.modalities == ["xr"] * 5
    assert torch.equal(made.seeds, project(batch, 2, "max").seeds)
    many = replace(batch, seeds=torch.cat([torch.arange(1000), torch.arange(2**63 - 1000, 2**63 - 1)]))
    seeds = project(many, 0).seeds
    assert (seeds >= 0).all()
    assert len({*seeds.tolist(), *many.seeds.tolist()}) == 2 * len(seeds)
    # The high bits of neighbours differ too.
    assert len(set((seeds >> 50).tolist())) > 1500


def test_the_order_of_rows_and_columns_is_kept() -> None:
    """A bright corner at the first D, the last H and the first W."""
    voxels = np.zeros((1, 1, 4, 5, 6), np.float32)
    voxels[0, 0, 0, 4, 0] = 1
    corners = {0: (4, 0), 1: (0, 0), 2: (0, 4)}
    for axis, corner in corners.items():
        image = project(batch_of(voxels, np.ones((1, 1, 4, 5, 6), bool)), axis).voxels[0, 0, 0].numpy()
        assert np.unravel_index(image.argmax(), image.shape) == corner


def test_the_axis_is_the_steps() -> None:
    rng = np.random.default_rng(0)
    voxels, valid = rng.normal(size=(2, 1, 4, 6, 8)).astype(np.float32), np.ones((2, 1, 4, 6, 8), bool)
    axes = [axis_of(step) for step in range(300)]
    assert all(80 < axes.count(axis) < 120 for axis in range(3))
    for step in range(20):
        made = project(batch_of(voxels, valid, step))
        # One rank's part of the step.
        assert torch.equal(made.voxels[:1], project(batch_of(voxels[:1], valid[:1], step)).voxels)
        assert torch.equal(made.voxels, project(batch_of(voxels, valid), axes[step]).voxels)


def test_images_have_none() -> None:
    with pytest.raises(UserError, match=r"images have no projection: unset data\.crop_2d"):
        project(batch_of(np.zeros((1, 1, 1, 4, 4), np.float32), np.ones((1, 1, 1, 4, 4), bool)), 0)


def test_of_the_loaders_batches(data_sets: Path) -> None:
    """Projections are augmented as X-rays, for which settings are taken though no source has any."""
    augment = AugmentConfig(preset="strong", modalities={"xr": {"invert": {"probability": 1.0}}})
    config = DataConfig(
        sources=[{"name": "mr", "path": data_sets / "mr"}], crop_3d=(32, 16, 20), workers=0,
        positives="projection", augment=augment,
    )  # fmt: skip
    with CropLoader(config, 0) as loader:
        for _ in range(6):
            batch = next(loader)
            assert not batch.paired
            made = project(batch)
            view = Augment(config.augment)(made)
            assert view.voxels.isfinite().all()
            for sample in range(len(made)):
                inside = made.voxels[sample][made.valid[sample]]
                assert abs(float(inside.mean())) < 1e-4
                assert abs(float(inside.std(correction=0)) - 1) < 1e-3
                outside = made.voxels[sample][~made.valid[sample]]
                assert (outside == inside.min()).all()
    with pytest.raises(UserError, match="no source has 'xr'"):
        SamplingPlan(config.model_copy(update={"positives": "views"}), 0)
