import time

import numpy as np

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.draw import Drawer
from scanfoundry.datasets.augment.transforms import KINDS
from scanfoundry.datasets.crop import mix

MODALITIES = ["ct", "mr", "us", "xr"] * 8
SEEDS = [mix(number) >> 1 for number in range(32)]


def test_the_stream_is_that_of_numpys_philox():
    key = mix(5, 6)
    drawer = Drawer(AugmentConfig())
    first = drawer._raw(key)
    drawer._raw(1)
    assert np.array_equal(drawer._raw(key), first)
    assert np.array_equal(first, np.random.Philox(key=key).random_raw(first.size))


def test_draws_lie_within_their_ranges_and_fill_them():
    config = AugmentConfig(preset="strong")
    seeds = [mix(number) >> 1 for number in range(4000)]
    drawn = Drawer(config)(seeds, ["us"] * len(seeds), 0)
    transforms = config.of("us")
    for name in KINDS:
        chosen = getattr(transforms, name)
        share = drawn.on[name].mean()
        if chosen is None:
            assert share == 0
            continue
        assert abs(share - chosen.probability) < 0.04
        for column, (low, high) in zip(drawn.values[name].T, chosen.ranges(), strict=True):
            assert low <= column.min() <= low + 0.01 * (high - low)
            assert high - 0.01 * (high - low) <= column.max() <= high
    assert abs(np.corrcoef(drawn.values["crop"][:, 0], drawn.values["gamma"][:, 0])[0, 1]) < 0.06
    assert len(np.unique(drawn.keys[:, 0])) > 3990


def test_switching_one_transform_leaves_the_draws_of_the_others():
    config = AugmentConfig.model_validate({"preset": "strong", "default": {"crop": None, "blur": {"sigma": [1, 3]}}})
    a, b = Drawer(AugmentConfig(preset="strong"))(SEEDS, MODALITIES, 0), Drawer(config)(SEEDS, MODALITIES, 0)
    assert np.array_equal(a.keys, b.keys)
    for name in set(KINDS) - {"crop", "blur"}:
        assert np.array_equal(a.values[name], b.values[name])
        assert np.array_equal(a.on[name], b.on[name])


def test_a_batch_of_32_is_drawn_in_under_a_millisecond():
    drawer = Drawer(AugmentConfig(preset="strong"))
    seconds = []
    for view in range(30):
        started = time.perf_counter()
        drawer(SEEDS, MODALITIES, view)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1e-3
