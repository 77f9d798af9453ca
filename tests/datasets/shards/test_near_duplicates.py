"""Which of many scans are kept: no two alike, the preferred one of each group, and all that resembles it is told."""

import numpy as np
import pytest

from scanfoundry.datasets.shards.near_duplicates import NEAR, Describable, NearPair, find_near_duplicates


def scans(thumbnails: np.ndarray, **changes: object) -> Describable:
    count = len(thumbnails)
    given = {
        "modalities": np.zeros(count, int),
        "unknown": -1,
        "sides": np.ones((count, 2, 2)),
        "preference": np.arange(count),
    }
    return Describable(thumbnails=thumbnails, **(given | changes))


def groups(rng: np.random.Generator, count: int, most: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors (scans, 255) that share a mean, in groups of up to `most`; and the number of each scan's group."""
    sizes = rng.integers(1, most + 1, count)
    shared, centres = rng.normal(0, 20, 255), rng.normal(0, 20, (count, 255))
    group = rng.permutation(np.repeat(np.arange(count), sizes))
    found = (shared + centres)[group] + rng.normal(0, noise, (len(group), 255))
    return found.clip(-127, 127).round().astype(np.int8), group


def correlations(thumbnails: np.ndarray) -> np.ndarray:
    unit = thumbnails / np.linalg.norm(thumbnails.astype(float), axis=1, keepdims=True)
    return unit @ unit.T


def check_promises(given: Describable, found: list[NearPair]) -> np.ndarray:
    """Every pair is near and of one that is kept; returns who is kept."""
    true = correlations(given.thumbnails)
    kept = np.ones(len(true), bool)
    kept[[pair.row for pair in found]] = False
    assert all(kept[pair.kept] and not kept[pair.row] for pair in found)
    assert all(pair.correlation == pytest.approx(true[pair.row, pair.kept]) for pair in found)
    assert all(pair.correlation >= NEAR for pair in found)
    assert found == sorted(found, key=lambda pair: (pair.row, pair.kept))
    assert len(set(found)) == len(found)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_one_of_each_group_is_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    thumbnails, group = groups(rng, 400, 5, noise=4)
    given = scans(thumbnails, preference=rng.permutation(len(group)))
    kept = check_promises(given, find_near_duplicates(given))
    assert np.array_equal(np.sort(group[kept]), np.arange(400))
    for row in np.flatnonzero(kept):
        assert given.preference[row] == given.preference[group == group[row]].min()


def test_few_scans_are_all_compared() -> None:
    """Where the groups are no groups: a chain of scans, each like the next ones alone."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.normal(0, 6, (30, 255)), axis=0) + rng.normal(0, 30, 255)
    given = scans(steps.clip(-127, 127).round().astype(np.int8))
    found = find_near_duplicates(given)
    kept = check_promises(given, found)
    near = np.triu(correlations(given.thumbnails) >= NEAR, 1)
    assert not near[np.ix_(kept, kept)].any()
    told = {frozenset((pair.row, pair.kept)) for pair in found}
    assert told == {frozenset(pair) for pair in np.argwhere(near).tolist() if kept[pair].sum() == 1}
    assert 2 < kept.sum() < 20


def test_a_thousand_equal_ones_are_one_group() -> None:
    """More than are neighbours in any order."""
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(-127, 128, (2000, 255)).astype(np.int8)
    equal = rng.permutation(2000)[:1000]
    thumbnails[equal] = thumbnails[equal[0]]
    given = scans(thumbnails, preference=rng.permutation(2000))
    best = equal[given.preference[equal].argmin()]
    assert {(pair.row, pair.kept) for pair in find_near_duplicates(given)} == {
        (row, best) for row in equal.tolist() if row != best
    }


def test_the_outcome_does_not_depend_on_where_else_is_looked() -> None:
    """Twice the same; and scans that resemble no other change nothing."""
    rng = np.random.default_rng(3)
    thumbnails, _ = groups(rng, 300, 3, noise=3)
    first = find_near_duplicates(scans(thumbnails))
    assert first
    assert find_near_duplicates(scans(thumbnails)) == first
    more = np.concatenate([thumbnails, rng.integers(-127, 128, (500, 255)).astype(np.int8)])
    assert find_near_duplicates(scans(more)) == first


def test_modality_and_proportions_must_fit() -> None:
    one = np.random.default_rng(0).integers(-127, 128, (1, 255)).astype(np.int8)
    pair = np.repeat(one, 2, axis=0)
    assert find_near_duplicates(scans(pair)) == [NearPair(1, 0, pytest.approx(1.0))]
    other = np.array([0, 1])
    assert find_near_duplicates(scans(pair, modalities=other)) == []
    assert len(find_near_duplicates(scans(pair, modalities=other, unknown=1))) == 1
    for voxels, mm, near in [
        ((100, 130), (100, 130), True),  # squeezed into a square
        ((100, 160), (100, 160), False),
        ((100, 160), (9, 9), True),  # of voxels that are no squares
    ]:
        sides = np.array([[(50, 50), (7, 7)], [voxels, mm]], float)
        assert len(find_near_duplicates(scans(pair, sides=sides))) == near


def test_scans_without_a_descriptor_are_like_none() -> None:
    assert find_near_duplicates(scans(np.zeros((70, 255), np.int8))) == []
    assert find_near_duplicates(scans(np.zeros((0, 255), np.int8))) == []
