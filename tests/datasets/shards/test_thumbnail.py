"""A re-export of a scan has nearly the same descriptor; scans of the same kind have others."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import statistics
from scanfoundry.datasets.shards.near_duplicates import NEAR
from scanfoundry.datasets.shards.thumbnail import (
    LONGEST,
    SIZE,
    ThumbnailList,
    describe,
    read_thumbnails,
    write_thumbnails,
)

bounded = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10**6)
SHAPES = {True: (1, 90, 120), False: (24, 40, 32)}


def anatomy(seed: int, flat: bool) -> np.ndarray:
    """(D, H, W) from 0 to 200: an outline that all scans of its kind share, and structures of its own."""
    shape = SHAPES[flat]
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, length) if length > 1 else [0.0] for length in shape), indexing="ij")
    body = np.clip(1.2 - sum(axis**2 for axis in axes), 0, 1)
    sizes = [0.0 if flat else 3.0, 5.0, 5.0]
    own = sum(gaussian_filter(rng.normal(size=shape), [s * size for size in sizes]) * s for s in (0.5, 1.0, 2.0))
    return (100 * body + 25 * (own / own.std()).clip(-2, 2) * (body > 0)).clip(0, 200)


def of(voxels: np.ndarray) -> np.ndarray:
    """The descriptor of (D, H, W) or (C, D, H, W)."""
    scan = voxels if voxels.ndim == 4 else voxels[None]
    return describe(scan, statistics(scan)).astype(float)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image[0].astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))[None]


@pytest.mark.parametrize("flat", [True, False])
@bounded
@given(SEEDS, st.floats(0.01, 100), st.floats(-1000, 1000), st.floats(0.6, 1.8), st.floats(0, 0.05))
def test_a_re_export_is_near(flat: bool, seed: int, slope: float, offset: float, size: float, noise: float) -> None:
    scan = anatomy(seed, flat)
    assert correlation(of(scan), of(scan * slope + offset)) > 0.999
    again = zoom(scan, [1 if length == 1 else size for length in scan.shape], order=1)
    again = again + np.random.default_rng(seed).normal(0, noise * 200, again.shape)
    assert correlation(of(scan), of((again * slope + offset).astype(np.float32))) > NEAR


@bounded
@given(SEEDS, st.integers(30, 95), st.sampled_from([(1, 60, 80), (1, 128, 128)]))
def test_a_jpeg_of_another_size_is_near(seed: int, quality: int, shape: tuple[int, ...]) -> None:
    scan = anatomy(seed, True)
    again = zoom(scan, np.array(shape) / scan.shape, order=1)
    assert correlation(of(scan), of(as_jpeg(again, quality))) > NEAR
    colours = np.repeat(as_jpeg(again, quality)[None], 3, axis=0)
    assert correlation(of(scan), of(colours)) > NEAR


@pytest.mark.parametrize("flat", [True, False])
def test_scans_of_one_kind_are_not(flat: bool) -> None:
    """Although the raw intensities of some correlate by more than 0.75, from the outline that they share."""
    scans = [anatomy(seed, flat) for seed in range(40)]
    found = np.corrcoef([of(scan) for scan in scans])[np.triu_indices(len(scans), 1)]
    raw = np.corrcoef([scan.reshape(-1) for scan in scans])[np.triu_indices(len(scans), 1)]
    assert raw.max() > 0.75
    assert found.max() < 0.85


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 500), (1, 16, 16), (2, 5, 3), (90, 70, 300)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    scan = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
    found = describe(scan[None], statistics(scan[None]))
    assert (found.dtype, found.shape) == (np.int8, (SIZE[shape[0] == 1],))
    assert np.abs(found).max() == (0 if scan.size == 1 else 127)


@pytest.mark.parametrize("value", [0, 3.7, -1e14])
def test_a_scan_of_one_value_has_none(value: float) -> None:
    assert not of(np.full((1, 40, 50), value, np.float64)).any()


def test_a_few_bright_voxels_are_seen() -> None:
    scan = np.zeros((1, 200, 200), np.uint8)
    scan[0, 20:24, 30:34] = 9  # fewer than the percentiles tell
    assert correlation(of(scan), of(scan * 3)) > 0.9999
    assert correlation(of(scan), of(scan[:, ::-1, ::-1])) < 0.5


def test_a_file_of_another_shard_or_none(tmp_path: Path) -> None:
    rows = [np.full(SIZE[True], 3, np.int8), np.full(LONGEST, -5, np.int8)]
    write_thumbnails(tmp_path / "a.npy", rows)
    table = read_thumbnails(tmp_path / "a.npy", 2)
    assert np.array_equal(table[0, : SIZE[True]], rows[0])
    assert not table[0, SIZE[True] :].any()
    assert np.array_equal(table[1], rows[1])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    for name, scans in (("a.npy", 3), ("cut.npy", 2), ("missing.npy", 2)):
        with pytest.raises(UserError, match="delete it and build again"):
            read_thumbnails(tmp_path / name, scans)


@bounded
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 40))
def test_a_list_that_is_cut_and_continued(added: list[int], rest: int) -> None:
    """A source that proves damaged takes its scans back, whether they were described yet or not."""
    scans = [np.random.default_rng(number).integers(0, 99, (1, 1, 5, 6)) for number in range(40)]
    expected: list[np.ndarray] = []
    found = ThumbnailList()
    for number in added:
        for scan in scans[:number]:
            found.add(scan, statistics(scan))
            expected.append(describe(scan, statistics(scan)))
        found.cut(rest)
        del expected[rest:]
    assert np.array_equal(found.all(), expected)
