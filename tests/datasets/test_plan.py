from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.plan import DataConfig, Position, SamplingPlan
from scanfoundry.datasets.sampling.mixture import Mixture
from scanfoundry.datasets.sampling.shuffle import WindowShuffle
from scanfoundry.datasets.shards.reader import DataSet


def config(data_sets: Path, **changes: object) -> DataConfig:
    base = {
        "sources": [{"name": name, "path": data_sets / name} for name in ("mr", "xr")],
        "crop_2d": (16, 16),
        "crop_3d": (8, 8, 8),
        "batch_2d": 8,
        "batch_3d": 4,
        "window": 2,
    }
    return DataConfig(**(base | changes))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=6), st.integers(0, 10**9), st.integers(0, 50))
def test_mixture_keeps_exact_shares_and_counts(shares: list[float], seed: int, start: int) -> None:
    mixture = Mixture(shares, 16, seed)
    drawn = Counter(dict(enumerate(mixture.counts(start * 16))))
    for draw in range(start * 16, (start + 3) * 16):
        part, rank = mixture.locate(draw)
        assert 0 <= rank - (start * 16 and mixture.counts(start * 16)[part]) < 48
        drawn[part] += 1
    total = (start + 3) * 16
    assert sum(drawn.values()) == total
    for part, share in enumerate(shares):
        assert abs(drawn[part] - total * share / sum(shares)) <= len(shares)


def test_mixture_ranks_count_up() -> None:
    mixture = Mixture([0.5, 0.3, 0.2], 16, 3)
    seen: Counter[int] = Counter()
    ranks: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for draw in range(160):
        part, rank = mixture.locate(draw)
        ranks[part].append(rank)
        seen[part] += 1
    assert seen == {0: 80, 1: 48, 2: 32}
    assert all(values == list(range(len(values))) for values in ranks.values())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 99))
def test_a_pass_visits_each_row_once_in_windows(sizes: list[int], window: int, seed: int) -> None:
    walk = WindowShuffle(sizes, window, seed)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for number in (0, 1, 5):
        rows = [walk(number * walk.rows + visit) for visit in range(walk.rows)]
        assert sorted(rows) == list(range(walk.rows))
        shards = shard_of[rows]
        in_use = [len(set(shards[i:]) & set(shards[: i + 1])) for i in range(walk.rows)]
        assert max(in_use) <= window


def test_every_scan_is_visited_before_any_again(data_sets: Path) -> None:
    plan = SamplingPlan(config(data_sets, crops_per_visit=2), 0)
    visits: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for step in range(4 * plan.steps_per_epoch):
        for draw in plan.draws(step)[::2]:
            visits[draw.source].append((draw.shard, draw.sample))
        assert [(d.shard, d.sample) for d in plan.draws(step)[::2]] == [
            (d.shard, d.sample) for d in plan.draws(step)[1::2]
        ]
    for source, scans in ((0, 24), (1, 40)):
        for begin in range(0, len(visits[source]) - scans + 1, scans):
            assert len(set(visits[source][begin : begin + scans])) == scans
        assert len(visits[source]) >= 3 * scans
    assert visits[0][:24] != visits[0][24:48]


def test_an_epoch_is_one_visit_of_each_scan(data_sets: Path) -> None:
    plan = SamplingPlan(config(data_sets, crops_per_visit=4), 0)
    assert plan.scans == 64
    assert plan.steps_per_epoch == 24 * 4 // 4 + 40 * 4 // 8
    assert SamplingPlan(config(data_sets, steps_per_epoch=7), 0).steps_per_epoch == 7


@pytest.mark.parametrize(("temperature", "weight", "share"), [(1.0, 1.0, 24 / 64), (0.0, 1.0, 0.5), (0.0, 3.0, 0.75)])
def test_shares_of_the_mixture(data_sets: Path, temperature: float, weight: float, share: float) -> None:
    sources = [
        {"name": "mr", "path": data_sets / "mr", "weight": weight},
        {"name": "xr", "path": data_sets / "xr"},
    ]
    plan = SamplingPlan(config(data_sets, sources=sources, temperature=temperature), 0)
    crops = Counter(draw.source for step in range(640) for draw in plan.draws(step))
    assert abs(crops[0] / crops.total() - share) < 0.01


def test_two_sources_of_one_kind_share_batches(data_sets: Path) -> None:
    sources = [{"name": name, "path": data_sets / "xr"} for name in ("a", "b")]
    plan = SamplingPlan(config(data_sets, sources=sources), 0)
    assert all({draw.source for draw in plan.draws(step)} == {0, 1} for step in range(10))
    # The two walk in orders of their own.
    rows = [[draw.row for step in range(10) for draw in plan.draws(step) if draw.source == s] for s in (0, 1)]
    assert rows[0][:20] != rows[1][:20]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_stream_is_the_same_at_any_world_size(data_sets: Path, world: int) -> None:
    whole = SamplingPlan(config(data_sets), 5)
    ranks = [SamplingPlan(config(data_sets), 5) for _ in range(world)]
    for step in (3, 50, 1000, 4):
        parts = [draw for rank, plan in enumerate(ranks) for draw in plan.draws(step, rank, world)]
        assert parts == whole.draws(step)


def test_seeds_differ_by_crop_and_by_run(data_sets: Path) -> None:
    plan = SamplingPlan(config(data_sets), 0)
    seeds = [draw.seed for step in range(300) for draw in plan.draws(step)]
    assert len(set(seeds)) == len(seeds)
    other = SamplingPlan(config(data_sets), 1)
    assert not set(seeds) & {draw.seed for step in range(300) for draw in other.draws(step)}


def test_held_out_patients_are_never_drawn(data_sets: Path) -> None:
    plan = SamplingPlan(config(data_sets, holdout=0.4), 0)
    everyone, drawn = set(), set()
    for data in plan.data:
        for shard in data.manifest.shards:
            everyone |= {entry.patient for entry in data.index(shard).samples}
    for step in range(3 * plan.steps_per_epoch):
        for draw in plan.draws(step):
            data = plan.data[draw.source]
            drawn.add(data.index(data.manifest.shards[draw.shard]).samples[draw.sample].patient)
    assert drawn == {patient for patient in everyone if fraction(patient) >= 0.4} == set(plan.patients())
    assert 0 < len(everyone - drawn) < len(everyone)


def test_volumes_give_slices_where_only_images_are_asked_for(data_sets: Path) -> None:
    plan = SamplingPlan(config(data_sets, crop_3d=None), 0)
    assert plan.scans == 64
    assert {plan.kind(step).crop for step in range(100)} == {(1, 16, 16)}
    assert {draw.source for draw in plan.draws(0)} == {0, 1}


def test_mistakes_are_named(data_sets: Path) -> None:
    with pytest.raises(UserError, match=r"'xr' .* set data\.crop_2d"):
        SamplingPlan(config(data_sets, crop_2d=None), 0)
    with pytest.raises(UserError, match="leaves no patient"):
        SamplingPlan(config(data_sets, holdout=0.9999999), 0)
    with pytest.raises(UserError, match="set that seed"):
        Position.of({"seed": 1, "epoch": 0, "position": 0}, 2)
    with pytest.raises(ValueError, match="same name"):
        config(data_sets, sources=[{"name": "a", "path": "x"}, {"name": "a", "path": "y"}])
    with pytest.raises(ValueError, match="crop_2d, crop_3d"):
        config(data_sets, crop_2d=None, crop_3d=None)


def test_replacement_walks_through_the_source(data_sets: Path) -> None:
    plan = SamplingPlan(config(data_sets), 0)
    draw = first = plan.draws(0)[0]
    rows = set()
    for _ in range(plan.streams[draw.stream].visits.rows):
        rows.add(draw.row)
        draw = plan.replacement(draw)
    assert draw == first
    assert len(rows) == sum(shard.samples for shard in DataSet(data_sets / ("mr", "xr")[draw.source]).manifest.shards)
