import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.crop import as_channels, mix, overlap, permutation, place, uniforms

sides = st.tuples(*[st.integers(1, 40)] * 3)
seeds = st.integers(0, 2**64 - 1)


@settings(max_examples=100, deadline=None)
@given(seeds, sides, sides, st.sampled_from([0.0, 0.5, 1.0]))
def test_a_crop_is_a_part_of_the_centred_scan(seed: int, scan: tuple, crop: tuple, foreground: float) -> None:
    bitmap = np.random.default_rng(seed % 2**32).random([min(16, side) for side in scan]) < 0.2
    where = place(seed, scan, crop, bitmap, foreground, [0, 2])
    assert where == place(seed, scan, crop, bitmap, foreground, [0, 2])
    assert not where.flips[1]
    voxels = np.arange(1, np.prod(scan) + 1).reshape(scan)
    of_scan, of_crop = overlap(where.start, scan, crop)
    result = np.zeros(crop, int)
    result[of_crop] = voxels[of_scan]
    for axis in range(3):
        if crop[axis] >= scan[axis]:  # all of the scan, in the middle
            assert of_scan[axis] == slice(0, scan[axis])
            before, after = of_crop[axis].start, crop[axis] - of_crop[axis].stop
            assert 0 <= after - before <= 1
        else:
            assert of_crop[axis] == slice(0, crop[axis])
    assert np.count_nonzero(result) == np.prod([min(a, b) for a, b in zip(scan, crop, strict=True)])


def test_crops_meet_the_foreground_and_reach_everywhere() -> None:
    scan, crop = (64, 64, 64), (16, 16, 16)
    bitmap = np.zeros((16, 16, 16), bool)
    bitmap[12, 3, 7] = True
    for seed in range(100):
        start = place(seed, scan, crop, bitmap, 1.0, []).start
        middle = [begin + 8 for begin in start]
        assert [axis // 4 for axis in middle] == [12, 3, 7]
    anywhere = np.array([place(seed, scan, crop, bitmap, 0.0, []).start for seed in range(2000)])
    assert anywhere.min() == 0
    assert anywhere.max() == 48
    assert abs(anywhere.mean() - 24) < 1
    mixed = [place(seed, scan, crop, bitmap, 0.7, []).start for seed in range(1000)]
    hit = sum([axis + 8 >> 2 for axis in start] == [12, 3, 7] for start in mixed)
    assert 650 < hit < 750


def test_flips_are_even_and_only_where_allowed() -> None:
    flips = np.array(
        [place(seed, (9, 9, 9), (4, 4, 4), np.ones((9, 9, 9), bool), 0.9, [2]).flips for seed in range(1000)]
    )
    assert not flips[:, :2].any()
    assert 450 < flips[:, 2].sum() < 550


def test_random_numbers_never_change() -> None:
    """A run that is resumed under another numpy must see the same stream."""
    assert mix(1, 2, 3) == 13041116711478803063
    assert uniforms(7, 3).round(6).tolist() == [0.872073, 0.295365, 0.420098]
    assert permutation(7, 6).tolist() == [4, 1, 3, 2, 5, 0]


def test_channels() -> None:
    rgb = np.stack([np.full((1, 2, 2), value, np.uint8) for value in (100, 50, 200)])
    assert np.allclose(as_channels(rgb, 1), 0.299 * 100 + 0.587 * 50 + 0.114 * 200)
    assert as_channels(rgb, 3) is rgb
    grey = as_channels(rgb[:1], 3)
    assert grey.shape == rgb.shape
    assert (grey == 100).all()
