"""Where crops lie: read out of voxels that hold their own anatomical place, however the scan is stored."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.centres import Centres
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position
from scanfoundry.datasets.projection import project
from scanfoundry.datasets.shards.build import BuildOptions, build

SIZE = (26, 22, 30)  # along superior, anterior, right
CODES = ("SAR", "IPL", "ASR", "RPI")  # along D, H, W
WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def write(path: Path, code: str) -> None:
    """A volume in one orientation, each voxel with its numbers along superior, anterior and right."""
    s, a, r = np.indices(SIZE)
    body = ((s * 64 + a) * 64 + r).astype(np.int32)
    stored = body.transpose([2 - WORLD[letter][0] for letter in code])
    stored = np.flip(stored, [axis for axis, letter in enumerate(code) if WORLD[letter][1] < 0])
    affine = np.diag([0.0, 0, 0, 1])
    for column, letter in enumerate(reversed(code)):
        axis, sign = WORLD[letter]
        affine[axis, column] = sign
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(stored.transpose(2, 1, 0), affine), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, key_file: Path, write_png: Callable) -> Path:
    root = tmp_path_factory.mktemp("centres")
    for code in CODES:
        write(root / "in" / "mr" / f"{code}.nii.gz", code)
    rng = np.random.default_rng(0)
    for number in range(3):
        write_png(root / "in" / "us" / f"{number}.png", rng.integers(0, 200, (40, 24)).astype(np.uint8))
    for name in ("mr", "us"):
        build([root / "in" / name], root / name, BuildOptions(modality=name, workers=1, key_file=key_file))
    return root


def config(folder: Path, source: str = "mr", **changes: object) -> DataConfig:
    sources = [{"name": source, "path": folder / source, "flip_axes": [0, 1, 2]}]
    base = {"sources": sources, "crop_3d": (9, 10, 12), "batch_3d": 8, "foreground": 0.5, "workers": 0, "ring": 3}
    return DataConfig(**(base | changes))


def read(voxels: np.ndarray) -> np.ndarray:
    """The mean place of a crop's voxels, as shares of the scan along superior, anterior, right."""
    code = voxels.astype(np.int64)
    numbers = code >> 12, code >> 6 & 63, code & 63
    return np.array([(each.mean() + 0.5) / size for each, size in zip(numbers, SIZE, strict=True)])


@pytest.mark.parametrize("crops", [{}, {"positives": "crops"}, {"crop_3d": None, "crop_2d": (9, 11), "batch_2d": 8}])
def test_a_centre_is_the_place_of_the_crops_voxels(folder: Path, crops: dict) -> None:
    flipped, seen = 0, []
    with CropLoader(config(folder, **crops), 0) as loader:
        for _ in range(6):
            made = loader.crops()
            assert made.centres.shares.dtype == np.float32
            assert made.centres.oriented.all()
            expected = np.array([read(crop) for crop in made.voxels.numpy()])
            np.testing.assert_allclose(made.centres.shares, expected, rtol=1e-6)
            flipped += made.flips.any()
            seen.append(expected)
    assert flipped
    assert (np.concatenate(seen).std(0) > 0.05).all()


def test_an_image_has_no_depth_and_an_axis_without_room_no_place(folder: Path) -> None:
    with CropLoader(config(folder, "us", crop_3d=None, crop_2d=(16, 24)), 0) as loader:
        centres = next(loader).centres
        assert loader.plan.volumes == 0
    assert np.isnan(centres.shares).tolist() == [[True, False, True]] * 32
    assert not centres.oriented.any()
    with CropLoader(config(folder, crop_3d=(40, 40, 40)), 0) as loader:
        assert np.isnan(next(loader).centres.shares).all()
        assert loader.plan.volumes == len(CODES)


def test_one_crop_by_hand() -> None:
    centres = Centres.unknown(3)
    centres.put(0, (2, 10, 0), (4, 10, 8), (16, 40, 8), "", frames=False)
    centres.put(1, (2, 10, 0), (4, 10, 8), (16, 40, 8), "LIA", frames=False)
    centres.put(2, (2, 10, 0), (1, 10, 8), (16, 40, 8), "LIA", frames=True)
    nan = np.nan
    np.testing.assert_array_equal(centres.shares, [[0.25, 0.375, nan], [0.625, nan, 0.75], [nan, 0.375, nan]])
    assert centres.oriented.tolist() == [False, True, False]
    np.testing.assert_array_equal(centres.rows(slice(1, 2)).shares, [[0.625, nan, 0.75]])


def test_augmented_and_projected_crops_lie_where_they_did(folder: Path) -> None:
    with CropLoader(config(folder, positives="crops"), 0) as loader:
        batch = next(loader)
    augment = Augment(AugmentConfig(preset="strong"))
    for number, half in enumerate(batch.halves()):
        for view in (augment(half, number), project(half)):
            np.testing.assert_array_equal(view.centres.shares, batch.centres.shares[8 * number : 8 * number + 8])
    assert (batch.centres.shares[:8] != batch.centres.shares[8:]).any()


def test_workers_ranks_and_resume_change_nothing(folder: Path) -> None:
    def stream(count: int, *rank: int, done: int = 0, workers: int = 0) -> np.ndarray:
        settings = config(folder, workers=workers, steps_per_epoch=100)
        with CropLoader(settings, 3, *rank, position=Position(0, done)) as loader:
            return np.stack([next(loader).centres.shares for _ in range(count)])

    expected = stream(6)
    np.testing.assert_array_equal(stream(6, workers=1), expected)
    np.testing.assert_array_equal(stream(4, done=2), expected[2:])
    np.testing.assert_array_equal(np.concatenate([stream(6, rank, 2) for rank in range(2)], axis=1), expected)
