"""Each intensity transform against a plain numpy re-statement of it."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from scanfoundry.datasets.augment import intensity, smooth
from scanfoundry.datasets.augment.pipeline import low_resolution_zoom
from scanfoundry.datasets.augment.transforms import BIAS_TERMS, MAX_HOLES
from scanfoundry.datasets.intensity import IntensityConfig, normalise

SCANS = np.random.default_rng(3).normal(size=(3, 2, 5, 9, 8)).astype(np.float32)
VALID = np.random.default_rng(4).random((3, 1, 5, 9, 8)) < 0.7
TENSOR, MASK = torch.from_numpy(SCANS), torch.from_numpy(VALID)


def column(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1, 1)


LOW, HIGH = TENSOR.amin((1, 2, 3, 4), keepdim=True), TENSOR.amax((1, 2, 3, 4), keepdim=True)


def test_window_is_the_normalisation_with_another_window():
    hounsfield = np.random.default_rng(0).uniform(-1500, 1500, (1, 1, 4, 5, 6)).astype(np.float32)
    stored = torch.from_numpy(normalise(hounsfield, "ct", {}, IntensityConfig(ct_window=(-1000, 1000))))
    found = intensity.window(stored, column(0.6), column(0.5))
    # 0.6 of 2000 HU are 1200; of the 800 left, half of one side more below: from -1000 + 400 + 200.
    expected = normalise(hounsfield, "ct", {}, IntensityConfig(ct_window=(-400, 800)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_gamma():
    found = intensity.gamma(TENSOR, LOW, HIGH, column(0.5, 1, 2)).numpy()
    for scan, result, exponent in zip(SCANS, found, (0.5, 1, 2), strict=True):
        unit = (scan - scan.min()) / np.ptp(scan)
        np.testing.assert_allclose(result, unit**exponent * np.ptp(scan) + scan.min(), atol=1e-5)


def test_contrast_and_brightness_and_inversion():
    found = intensity.contrast(TENSOR, MASK, column(0.5, 1, 2)).numpy()
    for scan, valid, result, factor in zip(SCANS, VALID, found, (0.5, 1, 2), strict=True):
        mean = scan[np.broadcast_to(valid, scan.shape)].mean()
        np.testing.assert_allclose(result, mean + factor * (scan - mean), atol=1e-5)
    np.testing.assert_allclose(intensity.brightness(TENSOR, column(1, -1, 0))[1].numpy(), SCANS[1] - 1, atol=1e-6)
    flipped = intensity.invert(TENSOR, LOW, HIGH).numpy()
    np.testing.assert_allclose(flipped[0], SCANS[0].max() + SCANS[0].min() - SCANS[0], atol=1e-6)


def test_mean_of_nothing_is_zero():
    assert intensity.mean(TENSOR, torch.zeros_like(MASK)).abs().max() == 0


@pytest.mark.parametrize("depth", [1, 5])
def test_bias_field(depth):
    scans = TENSOR[:, :, :depth]
    values = np.random.default_rng(1).uniform(-1, 1, (3, 1 + len(BIAS_TERMS)))
    values[:, 0] = (0.3, 0.0, 0.6)
    found = intensity.bias_field(scans, LOW, values).numpy()
    for number in range(3):
        axes = [np.zeros(1) if n == 1 else np.linspace(-1, 1, n) for n in scans.shape[2:]]
        d, h, w = np.meshgrid(*axes, indexing="ij")
        legendre = [np.polynomial.Legendre.basis(k) for k in range(4)]
        total = np.zeros(d.shape)
        for (a, b, c), weight in zip(BIAS_TERMS, values[number, 1:], strict=True):
            if depth == 1 and a > 0:
                continue
            total += weight * legendre[a](d) * legendre[b](h) * legendre[c](w)
        gain = np.exp(total / np.abs(total).max() * values[number, 0])
        low = SCANS[number].min()
        np.testing.assert_allclose(found[number], low + (scans[number].numpy() - low) * gain, rtol=1e-4, atol=1e-4)


def test_erase():
    values = np.zeros((3, 1 + 6 * MAX_HOLES))
    values[:, 0] = (1.5, 2.9, 1.0)
    values[:, 1:7] = (0.4, 0.3, 0.5, 0.99, 0.0, 0.5)  # sides 2, 3, 4 at 3, 0, 2
    values[:, 7:13] = (0.01, 0.01, 0.01, 0.5, 0.9, 0.99)  # sides 1, 1, 1 at 2, 8, 7
    found = intensity.erase(TENSOR, MASK, values, MAX_HOLES).numpy()
    for number in range(3):
        expected = SCANS[number].copy()
        mean = expected[np.broadcast_to(VALID[number], expected.shape)].mean()
        expected[:, 3:5, 0:3, 2:6] = mean
        if number == 1:
            expected[:, 2, 8, 7] = mean
        np.testing.assert_allclose(found[number], expected, atol=1e-6)


def test_blur_is_scipys_away_from_the_edge():
    scan = np.random.default_rng(2).normal(size=(2, 1, 21, 23, 25)).astype(np.float32)
    sigma = np.array([[0.7, 1.0, 0.5], [0.0, 1.2, 0.0]])
    operators = smooth.gaussian(sigma, (21, 23, 25), torch.device("cpu"))
    found = smooth.smoothed(torch.from_numpy(scan), None, operators).numpy()
    for number in range(2):
        expected = ndimage.gaussian_filter(scan[number, 0], sigma[number], truncate=6)
        inner = (slice(6, -6),) * 3
        np.testing.assert_allclose(found[number, 0][inner], expected[inner], atol=1e-5)


def test_blur_averages_valid_voxels_alone():
    sigma = np.full((3, 3), 0.9)
    scans = torch.where(MASK, TENSOR, -1e3)
    operators = smooth.gaussian(sigma, (5, 9, 8), torch.device("cpu"))
    found = smooth.smoothed(scans, MASK, operators).numpy()
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (5, 9, 8)), indexing="ij"), -1).reshape(-1, 3)
    weight = np.exp(-((index[:, None] - index) ** 2).sum(-1) / (2 * 0.9**2)) * VALID[1].ravel()
    weight /= weight.sum(1, keepdims=True)
    expected = weight @ SCANS[1, 0].ravel()
    inside = VALID[1].ravel()
    np.testing.assert_allclose(found[1, 0].ravel()[inside], expected[inside], atol=1e-4)
    assert (found[1, 0].ravel()[~inside] == -1e3).all()


def coarse_line(line, zoom):
    """Averages of equal cells, then np.interp between their middles."""
    n = len(line)
    count = max(1, round(n / zoom))
    total = np.concatenate([[0], np.cumsum(line)])
    edges = np.linspace(0, n, count + 1)
    means = np.diff(np.interp(edges, np.arange(n + 1), total)) * count / n
    return np.interp(np.arange(n) + 0.5, (edges[1:] + edges[:-1]) / 2, means)


def test_low_resolution():
    zoom = np.array([[2.0, 1.5, 3.1], [1.0, 1.0, 2.5], [1.3, 1.0, 1.0]])
    operators = smooth.coarse(zoom, (5, 9, 8), torch.device("cpu"))
    found = smooth.smoothed(TENSOR, None, operators).numpy()
    for number in range(3):
        expected = SCANS[number]
        for axis in range(3):
            expected = np.apply_along_axis(coarse_line, axis + 1, expected, zoom[number, axis])
        np.testing.assert_allclose(found[number], expected, atol=1e-5)


def test_low_resolution_of_one_axis_prefers_thick_slices():
    values = np.random.default_rng(0).random((2000, 5))
    values[:, 0] = -0.1
    values[:, 2:] = np.log(2)
    share = (low_resolution_zoom(values, (8, 8, 8)) > 1.5).mean(0)
    np.testing.assert_allclose(share, (0.5, 0.25, 0.25), atol=0.04)
    np.testing.assert_allclose((low_resolution_zoom(values, (1, 8, 8)) > 1.5).mean(0), (0, 0.5, 0.5), atol=0.04)
    values[:, 0] = 0.1
    assert np.allclose(low_resolution_zoom(values, (8, 8, 8)), 2)
