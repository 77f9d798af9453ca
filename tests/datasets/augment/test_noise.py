import numpy as np
import torch
from scipy import stats

from scanfoundry.datasets.augment import noise
from scanfoundry.datasets.augment.smooth import gaussian

KEYS = torch.tensor([[1, -2], [-123456, 99], [2**31 - 1, -(2**31)]], dtype=torch.int32)


def reference_mixer(x, key):
    """The same mixer in unsigned numpy arithmetic."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D) ^ key
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def reference_hash(key, count):
    first, second = (np.array([part & 0xFFFFFFFF], np.uint32) for part in key)
    return reference_mixer(np.arange(count, dtype=np.uint32) + first, reference_mixer(second, np.uint32(0)))


def test_hash_is_exact_32_bit_arithmetic():
    found = noise.hashed(KEYS, 1001).numpy().view(np.uint32)
    for row, key in zip(found, KEYS.tolist(), strict=True):
        assert np.array_equal(row, reference_hash(key, 1001))


def test_normals_are_standard_normal_and_independent():
    x = noise.normals(KEYS, 200_001).numpy()
    assert np.isfinite(x).all()
    for row in x:
        assert stats.kstest(row, "norm").pvalue > 1e-3
        for lag in (1, 2, 50, 448, 100_000, 100_001):
            assert abs(np.corrcoef(row[:-lag], row[lag:])[0, 1]) < 0.015
    assert np.abs(np.corrcoef(x) - np.eye(3)).max() < 0.01


def test_neighbouring_keys_give_unrelated_noise():
    keys = torch.tensor([[5, 5], [6, 5], [5, 6]], dtype=torch.int32)
    x = noise.normals(keys, 50_000).numpy()
    assert np.abs(np.corrcoef(x) - np.eye(3)).max() < 0.02
    random = torch.from_numpy(np.random.default_rng(0).integers(-(2**31), 2**31, (200, 2)).astype(np.int32))
    x = noise.normals(random, 20_000).numpy()
    assert np.abs(np.corrcoef(x) - np.eye(200)).max() < 5.5 / 20_000**0.5  # of 20,000 pairs
    assert np.abs(np.corrcoef(x**2) - np.eye(200)).max() < 5.5 / 20_000**0.5
    streams = [noise.field(KEYS[:1], torch.empty(1, 1, 1, 200, 200), stream).flatten().numpy() for stream in range(3)]
    assert np.abs(np.corrcoef(streams) - np.eye(3)).max() < 0.02


def test_chunks_change_nothing(monkeypatch):
    whole = noise.normals(KEYS, 1000)
    monkeypatch.setattr(noise, "_CPU_CHUNK", 1500)
    assert torch.equal(noise.normals(KEYS, 1000), whole)


def test_rician_is_the_magnitude_of_a_noisy_complex_signal():
    signal = torch.linspace(0, 3, 1_000_000).view(1, 1, 1, 1000, 1000)
    found = noise.rician_noise(signal - 1.5, torch.tensor(-1.5).view(1, 1, 1, 1, 1), KEYS[:1], torch.tensor(0.4)) + 1.5
    assert found.min() >= 0
    for low in (0.0, 1.0, 2.5):
        near = (signal >= low) & (signal < low + 0.02)
        expected = stats.rice(b=(low + 0.01) / 0.4, scale=0.4)
        assert abs(found[near].mean() - expected.mean()) < 0.02
        assert abs(found[near].std() - expected.std()) < 0.02


def test_speckle_scales_with_the_signal_whatever_its_grain():
    signal = torch.full((3, 1, 1, 300, 300), 1.0)
    signal[..., :150] = 4.0
    low = torch.zeros(3, 1, 1, 1, 1)
    for grain, neighbours in ((0.0, 0.0), (0.8, 0.68)):
        operators = gaussian(np.full((3, 3), grain), (1, 300, 300), signal.device)
        ratio = (noise.speckle(signal, low, KEYS, torch.tensor(0.1), operators) / signal - 1).numpy()
        assert abs(ratio[..., :150].std() - 0.1) < 2e-3
        assert abs(ratio[..., 150:].std() - 0.1) < 2e-3
        found = np.corrcoef(ratio[..., 1:].ravel(), ratio[..., :-1].ravel())[0, 1]
        assert abs(found - neighbours) < 0.03
