"""A run whose sources grow: what is drawn before stays, passes end, new scans join where it is said."""

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from grown import Shard, grow, patient
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.growth import growth_of
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.plan import DataConfig, Draw, SamplingPlan
from scanfoundry.datasets.sampling.mixture import Mixture
from scanfoundry.datasets.sampling.segments import Segment

Scan = tuple[int, int]  # shard, sample
shards = st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4)


class Grown(NamedTuple):
    """A plan of each segment of a run, the shards of each, and the steps that the later ones begin at."""

    plans: list[SamplingPlan]
    held: list[list[Shard]]
    steps: list[int]


def config(folder: Path, **changes: Any) -> DataConfig:
    sources = [{"name": name, "path": folder / name} for name in ("grows", "stays")]
    base = {"crop_2d": (8, 8), "crop_3d": (4, 8, 8), "batch_2d": 4, "batch_3d": 2, "window": 2}
    return DataConfig.model_validate({"sources": sources} | base | changes)


def run(folder: Path, parts: list[list[Shard]], steps: list[int], seed: int, **changes: Any) -> Grown:
    """A run that the first source of grows part by part, before each of these steps."""
    stays = grow(folder / "stays", [[True, False, True]])
    segments, plans, held = [], [], []
    for number, step in enumerate([0, *steps]):
        held.append([shard for part in parts[: number + 1] for shard in part])
        segments.append(Segment(step, {"grows": grow(folder / "grows", held[-1]), "stays": stays}))
        plans.append(SamplingPlan(config(folder, **changes), seed, segments))
    return Grown(plans, held, steps)


def scans(shards: list[Shard], image: bool) -> set[Scan]:
    return {(n, s) for n, shard in enumerate(shards) for s, each in enumerate(shard) if each == image}


def visited(plan: SamplingPlan, steps: int) -> dict[tuple[int, bool], list[tuple[int, Scan]]]:
    """By source and kind, (step, scan) of each visit in order."""
    found, crops, current = defaultdict(list), defaultdict(int), {}
    for step in range(steps):
        image = plan.kind(step).crop[0] == 1
        for draw in plan.draws(step):
            scan = draw.source, draw.shard, draw.sample
            if crops[image] % plan.config.crops_per_visit == 0:
                current[image] = scan
                found[draw.source, image].append((step, scan[1:]))
            assert scan == current[image]  # a visit goes on where it was, also when a source grows in it
            crops[image] += 1
    return found


@settings(max_examples=60, deadline=None)
@given(
    parts=st.tuples(shards, shards, shards),
    steps=st.tuples(st.integers(1, 30), st.integers(0, 30)),
    seed=st.integers(0, 99),
    changes=st.fixed_dictionaries(
        {
            "crops_per_visit": st.sampled_from([1, 3]),
            "temperature": st.sampled_from([0.0, 0.5, 1.0]),
            "balance": st.sampled_from(["source", "modality"]),
            "positives": st.sampled_from(["views", "crops"]),
        }
    ),
)
def test_passes_end_before_new_scans_join(parts: tuple, steps: tuple[int, int], seed: int, changes: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plans, held, begins = run(Path(folder), list(parts), [steps[0], sum(steps)], seed, **changes)
    last, total = plans[-1], begins[-1] + 60
    # What was drawn before stays, and each rank has its part of it.
    for step in range(total):
        plan = plans[sum(step >= begin for begin in begins)]
        draws = last.draws(step)
        assert draws == plan.draws(step)
        assert plan.kind(step).crop == last.kind(step).crop
        assert [draw for rank in range(2) for draw in last.draws(step, rank, 2)] == draws
        assert [last.partner(draw) for draw in draws] == [plan.partner(draw) for draw in draws]
    seeds = [draw.seed for step in range(total) for draw in last.draws(step)]
    assert len(set(seeds)) == len(seeds)
    for (source, image), visits in visited(last, total).items():
        of_segments = [scans(each if source == 0 else [[True, False, True]], image) for each in held]
        begun = [sum(step < begin for step, _ in visits) for begin in begins]
        # A pass is over the scans of the newest segment that had begun as the pass begins.
        done = 0
        while done < len(visits):
            expected = of_segments[sum(done >= each for each in begun)]
            part = [scan for _, scan in visits[done : done + len(expected)]]
            assert len(set(part)) == len(part)
            assert set(part) <= expected
            done += len(expected)
    for plan, before, now in zip(plans[1:], held, held[1:], strict=False):
        _check_line(plan, sum(map(len, now)) - sum(map(len, before)))


def _check_line(plan: SamplingPlan, added: int) -> None:
    """The log says how many scans joined, and the step in which the first of their passes begins."""
    (line,) = growth_of(plan)
    found = re.fullmatch(
        r"source 'grows' has grown by (\d+) scans after step (\d+): they join from step (\d+) on", line
    )
    assert found is not None, line
    assert (int(found[1]), int(found[2])) == (added, plan.begins)
    new = [stream.number for stream in plan.current if stream.source == 0]
    grown = {n for n in new if plan.streams[n].rest is None or plan.streams[n].visits.rows > _rows_before(plan, n)}
    first = int(found[3]) - 1
    assert not grown & {draw.stream for step in range(plan.begins, first) for draw in plan.draws(step)}
    assert grown & {draw.stream for draw in plan.draws(first)}


def _rows_before(plan: SamplingPlan, number: int) -> int:
    rest = plan.streams[number].rest
    assert rest is not None
    return rest.stream.visits.rows


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=5), st.integers(0, 10**9), st.integers(0, 200))
def test_mixture_counts_and_finds_at_any_number_of_draws(shares: list[float], seed: int, draws: int) -> None:
    mixture = Mixture(shares, 16, seed)
    located = [mixture.locate(draw) for draw in range(draws)]
    assert mixture.drawn(draws) == [sum(part == each for part, _ in located) for each in range(len(shares))]
    assert [mixture.find(*each) for each in located] == list(range(draws))


def test_a_scan_of_a_held_out_patient_goes_at_once_and_is_told_of(tmp_path: Path) -> None:
    """After the append a scan turns out to be of a second patient, whom the hold-out keeps."""
    images = [[True] * 4] * 3
    others = sorted((patient(number) for number in range(100, 200)), key=fraction)
    holdout = fraction(others[3])
    kept = [row for row in range(12) if fraction(patient(row // 2)) >= holdout]
    row = next(row for row in kept if row // 2 == kept[-1] // 2)
    hidden, found = others[0], others[-1]
    settings = config(tmp_path, holdout=holdout, crops_per_visit=2)
    segments = [Segment(0, {"grows": grow(tmp_path / "grows", images), "stays": grow(tmp_path / "stays", images)})]
    before = SamplingPlan(settings, 0, segments)
    assert hidden not in before.patients()
    again = {row: [hidden, found], 0: [others[1]]}
    manifests = {
        "grows": grow(tmp_path / "grows", [*images, [True] * 4], again),
        "stays": segments[0].manifests["stays"],
    }
    held_out_before = fraction(patient(0)) < holdout
    for step in range(1, 12):
        plan = SamplingPlan(settings, 0, [*segments, Segment(step, manifests)])
        drawn = {
            (draw.shard, draw.sample) for each in range(step, step + 40) for draw in plan.draws(each) if not draw.source
        }
        assert divmod(row, 4) not in drawn
        assert {divmod(each, 4) for each in kept if each != row and (each or held_out_before)} <= drawn
        assert [plan.draws(each) for each in range(step)] == [before.draws(each) for each in range(step)]
        assert plan.first.draws(step) == before.draws(step)
        told = set(plan.patients())
        assert {hidden, found, *before.patients()} <= told  # the model may have seen the scan
        assert (others[1] in told) == (not held_out_before)
        assert {patient(6), patient(7)} & told == {
            each for each in (patient(6), patient(7)) if fraction(each) >= holdout
        }
        assert re.search(r"; [12] of the others are left out from now on, see data\.holdout", growth_of(plan)[0])
        old = {draw.row for draw in (plan.replacement(Draw(0, each, 0, 0, 0, 0)) for each in range(len(kept)))}
        assert not old & plan.streams[0].gone


def test_a_plan_is_not_continued_on_scans_that_are_all_held_out(tmp_path: Path) -> None:
    least = min((patient(number) for number in range(100, 200)), key=fraction)
    images = [[True] * 4]
    holdout = np.nextafter(fraction(least), 1)
    stays = grow(tmp_path / "stays", images)
    first = Segment(0, {"grows": grow(tmp_path / "grows", images), "stays": stays})
    grown = grow(tmp_path / "grows", [*images, [True] * 2], {row: [least] for row in range(4)})
    with pytest.raises(UserError, match="'grows': no scan of before is sampled any more; choose a new run_dir"):
        SamplingPlan(config(tmp_path, holdout=holdout), 0, [first, Segment(5, {"grows": grown, "stays": stays})])


def test_near_duplicates_of_new_scans_are_left_out(tmp_path: Path) -> None:
    head = "key,kept_key,correlation,same_patient,row,kept_row\n"
    near = [f"{head}a,b,0.999,no,1,3\n", f"{head}a,b,0.999,no,1,3\nc,d,0.999,no,5,7\n"]
    images = [[True] * 4]
    stays = grow(tmp_path / "stays", images)
    sources = [{"name": "grows", "path": tmp_path / "grows", "near_duplicates": "drop"}]
    sources.append({"name": "stays", "path": tmp_path / "stays"})
    segments = [Segment(0, {"grows": grow(tmp_path / "grows", images, near=near[0]), "stays": stays})]
    manifests = {"grows": grow(tmp_path / "grows", images * 2, near=near[1]), "stays": stays}
    plan = SamplingPlan(config(tmp_path, sources=sources), 0, [*segments, Segment(2, manifests)])
    drawn = {(draw.shard, draw.sample) for step in range(2, 50) for draw in plan.draws(step) if draw.source == 0}
    assert drawn == {(0, 0), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)}
    assert growth_of(plan)[0].startswith("source 'grows' has grown by 3 scans after step 2: they join from step ")


def test_partners_of_a_study_are_of_the_same_pass(tmp_path: Path) -> None:
    """Scans 2n and 2n + 1 are of one study, whose second half comes with the append."""
    images = [[True] * 3]
    segments = [Segment(0, {"grows": grow(tmp_path / "grows", images)})]
    settings = config(tmp_path, sources=[{"name": "grows", "path": tmp_path / "grows"}], positives="study")
    before = SamplingPlan(settings, 0, segments)
    plan = SamplingPlan(settings, 0, [*segments, Segment(1, {"grows": grow(tmp_path / "grows", [*images, [True]])})])
    pairs = defaultdict(set)
    for step in range(20):
        for draw in plan.draws(step):
            partner = plan.partner(draw)
            assert partner.stream == draw.stream
            pairs[draw.stream].add(tuple((each.shard, each.sample) for each in (draw, partner)))
            if step < 1:
                assert before.partner(draw) == partner
    both = {((0, 0), (0, 1)), ((0, 1), (0, 0))}
    assert pairs[0] == {*both, ((0, 2), (0, 2))}
    assert pairs[1] == {*both, ((0, 2), (1, 0)), ((1, 0), (0, 2))}
