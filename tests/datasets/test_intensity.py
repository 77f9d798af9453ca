import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scanfoundry.datasets.intensity import IntensityConfig, background, normalise, statistics


def test_ct_window_becomes_minus_one_to_one() -> None:
    scan = np.array([-3000, -1000, 0, 500, 1000, 3000], np.int16)
    result = normalise(scan, "ct", statistics(scan), IntensityConfig())
    assert result.dtype == np.float32
    assert result.tolist() == [-1, -1, 0, 0.5, 1, 1]
    assert background("ct", statistics(scan), IntensityConfig()) == -1


def test_others_are_z_scored_by_their_foreground() -> None:
    rng = np.random.default_rng(0)
    scan = rng.normal(1000, 50, (40, 40, 40)).astype(np.float32)
    scan[:20] = rng.normal(10, 3, (20, 40, 40))
    result = normalise(scan, "mr", statistics(scan), IntensityConfig())
    assert abs(result[20:].mean()) < 0.02
    assert abs(result[20:].std() - 1) < 0.02
    assert result.min() == pytest.approx(background("mr", statistics(scan), IntensityConfig()), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 1e4), st.floats(-1e3, 1e3))
def test_the_scanner_gain_does_not_matter(gain: float, offset: float) -> None:
    scan = np.random.default_rng(1).gamma(2, 100, (12, 13, 14))
    plain = normalise(scan, "mr", statistics(scan), IntensityConfig())
    other = normalise(scan * gain + offset, "mr", statistics(scan * gain + offset), IntensityConfig())
    assert np.allclose(plain, other, atol=0.02 + 1e-5 * abs(offset) / gain)


def test_a_crop_is_normalised_as_the_scan_is() -> None:
    scan = np.random.default_rng(0).integers(0, 4000, (20, 21, 22)).astype(np.int16)
    stats, config = statistics(scan), IntensityConfig(percentiles=(2.0, 98.0))
    whole = normalise(scan, "mr", stats, config)
    out = np.empty((5, 6, 7), np.float32)
    assert normalise(scan[3:8, 4:10, 5:12], "mr", stats, config, out=out) is out
    assert np.array_equal(out, whole[3:8, 4:10, 5:12])


def test_statistics_are_json_and_exact_where_said() -> None:
    scan = np.random.default_rng(0).integers(-1024, 3000, (1, 150, 150, 150)).astype(np.int16)
    scan[0, 1, 2, 3], scan[0, 3, 2, 1] = -30000, 30000
    stats = statistics(scan)
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["min"], stats["max"]) == (-30000, 30000)
    assert abs(stats["p995"] - np.percentile(scan, 99.5)) < 5


@pytest.mark.parametrize("value", [0, 7, -5])
def test_a_constant_scan_becomes_zero(value: int) -> None:
    scan = np.full((4, 4, 4), value, np.int16)
    assert not normalise(scan, "us", statistics(scan), IntensityConfig()).any()


@pytest.mark.parametrize(("share", "value"), [(0.03, 255), (0.5, 255), (0.97, 1), (0.03, 1e-3)])
def test_a_shape_mask_keeps_a_sane_scale(share: float, value: float) -> None:
    scan = np.where(np.random.default_rng(0).random((20, 20, 20)) < share, value, 0).astype(np.float32)
    result = normalise(scan, "ct of a shape", statistics(scan), IntensityConfig())
    assert np.unique(result.round(3)).tolist() == [-1, 0]
    assert background("ct of a shape", statistics(scan), IntensityConfig()) == pytest.approx(-1)


def test_percentiles_that_were_not_stored_are_refused() -> None:
    with pytest.raises(ValidationError):
        IntensityConfig(percentiles=(0.7, 99.5))
