"""A prediction lies on the same anatomy in the world, however the scan's voxels are turned, mirrored or spaced."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, zoom

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.model_file import adapter_for, save_model
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.spec import Spec

TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def turned(voxels, affine, order, signs):
    """The same scan with its axes in another order and direction."""
    flipped = voxels[tuple(slice(None, None, s) for s in signs)]
    change = np.eye(4)
    for axis, sign in enumerate(signs):
        if sign < 0:
            change[axis, axis], change[axis, 3] = -1, voxels.shape[axis] - 1
    permute = np.eye(4)[:, [*order, 3]]
    return np.ascontiguousarray(flipped.transpose(order)), affine @ change @ permute


def oblique(angles):
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def body(shape, seed):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2, mode="constant")
    return (1000 * noise / np.abs(noise).max()).astype(np.float32)


def save(path, voxels, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    nib.save(image, path)
    return path


def world_points(path, label):
    image = nib.load(path)
    points = np.argwhere(np.asarray(image.dataobj) == label)
    return points @ image.affine[:3, :3].T + image.affine[:3, 3]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turn=st.sampled_from(TURNS),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.7, 1.0, 1.6])] * 3),
    seed=st.integers(0, 99),
)
def test_turned_and_mirrored_copies_give_the_same_points(above, tmp_path_factory, turn, angles, spacing, seed):
    folder = tmp_path_factory.mktemp("turned")
    affine = np.eye(4)
    affine[:3, :3] = oblique(angles) * spacing
    affine[:3, 3] = (11, -7, 30)
    voxels = body((14, 11, 17), seed)
    save(folder / "in" / "a.nii.gz", voxels, affine)
    save(folder / "in" / "b.nii.gz", *turned(voxels, affine, *turn))
    above(200, [folder / "in"], folder / "out")
    for label in (1, 2):
        one, other = (world_points(folder / "out" / name, label) for name in ("a.nii.gz", "b.nii.gz"))
        assert len(one) == pytest.approx(len(other), abs=1)  # a voxel on the very threshold may round either way
        if len(one):
            apart = np.linalg.norm(one[:, None] - other[None], axis=2).min(1)
            assert (apart > 1e-3).sum() <= 1


def test_a_respaced_copy_gives_the_same_place_and_volume(above, tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = oblique((0.3, -0.5, 0.2)) * (1.0, 1.2, 0.9)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (32, 30, 36)), indexing="ij"), -1)
    ball = 1000 - 60 * np.linalg.norm((grid - np.array([14, 16, 20])) * (1.0, 1.2, 0.9), axis=-1)
    save(tmp_path / "in" / "a.nii.gz", ball.astype(np.float32), affine)
    factors = np.array([1.5, 2.0, 0.75])
    finer = zoom(ball, factors, order=1, grid_mode=True, mode="nearest")
    other = affine.copy()
    other[:3, :3] = affine[:3, :3] / factors
    other[:3, 3] = affine[:3, 3] + affine[:3, :3] @ (0.5 / factors - 0.5)  # the outer edge stays where it is
    save(tmp_path / "in" / "b.nii.gz", finer.astype(np.float32), other)
    above(300, [tmp_path / "in"], tmp_path / "out")
    sizes, centres = [], []
    for name in ("a.nii.gz", "b.nii.gz"):
        points = world_points(tmp_path / "out" / name, 1)
        voxel = abs(np.linalg.det(nib.load(tmp_path / "out" / name).affine[:3, :3]))
        sizes.append(len(points) * voxel)
        centres.append(points.mean(0))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
    assert np.linalg.norm(centres[0] - centres[1]) < 0.1
    assert np.linalg.norm(centres[0] - (affine[:3, :3] @ [14, 16, 20] + affine[:3, 3])) < 0.1


def test_a_real_network_finds_the_same_hippocampus_in_mirrored_copies(tmp_path, real_data):
    """Random weights, mean over all mirrorings, a patch that holds the scan: what is left is the geometry of files."""
    source = nib.load(real_data / "msd_task04_hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")
    voxels = np.asarray(source.dataobj).astype(np.float32)
    voxels = voxels[: len(voxels) // 2 * 2]  # an odd number is padded by one voxel more on one side
    backbone = STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3)
    patch = tuple(-(-n // 4) * 4 for n in voxels.T.shape)
    found = Fingerprint(scans=1, shape=patch, spacing=(1, 1, 1), is_2d=False)
    spec = Spec(
        task=SegmentationTask(), classes=["anterior", "posterior"], modality="mr", backbone=backbone,
        intensity=IntensityConfig(), inference=InferenceConfig(mirror=True), flip_axes=[2],
        plan=Plan(spacing=(1, 1, 1), patch=patch, batch=1, fingerprint=found),
    )  # fmt: skip
    torch.manual_seed(3)
    save_model(tmp_path / "model", [adapter_for(spec).build(build(backbone))], spec)
    save(tmp_path / "in" / "a.nii.gz", voxels, source.affine)
    save(tmp_path / "in" / "b.nii.gz", *turned(voxels, source.affine, (0, 1, 2), (-1, 1, 1)))
    predict(tmp_path / "model", [tmp_path / "in"], tmp_path / "out", device="cpu")
    one, other = (np.asarray(nib.load(tmp_path / "out" / f"{name}.nii.gz").dataobj) for name in "ab")
    assert len(np.unique(one)) > 1
    assert (one == other[::-1]).mean() > 0.999
    assert (one == other).mean() < 0.99  # the copy is another array
