"""RankMe and the features' spread against plain formulae; the monitors in a run change nothing in it."""

import json
import math

import numpy as np
import pytest
import torch

from scanfoundry.configs.loading import check
from scanfoundry.datasets.plan import SamplingPlan
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.logging.first_batches import first_batches
from scanfoundry.pretrain.logging.monitors import Monitors, rankme, spread

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def plan_of(given: PretrainConfig) -> SamplingPlan:
    return SamplingPlan(given.data, given.seed)


def naive_rankme(features):
    """Eigenvalues of the Gram matrix, numbers one by one."""
    x = features.numpy().astype(np.float64)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = [math.sqrt(max(value, 0.0)) for value in np.linalg.eigvalsh(gram)]
    shares = [value / sum(values) + 1e-7 for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16)])
def test_rankme_equals_the_naive_formula(shape):
    torch.manual_seed(0)
    features = torch.randn(shape, dtype=torch.float64) * torch.linspace(0.01, 3, shape[1])
    assert rankme(features) == pytest.approx(naive_rankme(features), rel=1e-9)
    assert rankme(features.float()) == pytest.approx(rankme(features), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_is_the_rank_where_all_directions_weigh_the_same(rank):
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64))[0] for n in (50, 20))
    assert rankme(5 * left @ right.T) == pytest.approx(rank, rel=1e-4)


def test_collapsed_features_have_rank_one_and_no_spread():
    torch.manual_seed(0)
    same = torch.randn(1, 32).expand(64, -1)
    assert rankme(same) == pytest.approx(1, abs=1e-3)
    assert max(spread(same)) < 1e-6
    assert rankme(torch.zeros(64, 32)) == pytest.approx(1, abs=1e-3)
    line = torch.randn(1, 32) * torch.linspace(0.5, 2, 64)[:, None]  # one direction, many lengths
    assert rankme(line) == pytest.approx(1, abs=1e-3)
    unit, plain = spread(line)
    assert unit < 1e-6
    assert plain > 0.1


def test_spread_equals_the_naive_formula_and_is_near_its_ideal_for_isotropic_features():
    torch.manual_seed(0)
    features = torch.randn(500, 64, dtype=torch.float64)
    unit, plain = spread(features)
    rows = [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in features.tolist()]
    for given, table in ((unit, rows), (plain, features.tolist())):
        deviations = []
        for column in zip(*table, strict=True):
            mean = sum(column) / len(column)
            deviations.append(math.sqrt(sum((x - mean) ** 2 for x in column) / (len(column) - 1)))
        assert given == pytest.approx(sum(deviations) / len(deviations), rel=1e-9)
    assert unit == pytest.approx(1 / 8, rel=0.02)


def config(shards, run_dir, **changes):
    content = {
        "run_dir": str(run_dir), "seed": 3, "steps": 10, "checkpoint_every": 4, "threads": 1, "monitor_crops": 16,
        "backbone": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3},
        "objective": {"name": "contrastive", "projector_hidden": 16, "projector_dim": 8},
        "data": {
            "sources": [{"name": name, "path": str(path)} for name, path in shards.items()],
            "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 4, "batch_3d": 2, "workers": 0,
            "augment": {"preset": "strong"},
        },
        "optimiser": {"warmup_steps": 2},
    }  # fmt: skip
    return check(PretrainConfig, content | changes, "test")


def test_the_fixed_crops_are_the_same_at_any_world_size(tiny_shards, tmp_path):
    """Whole steps of the stream, and as many batches on every rank."""
    for engine in ({}, {"accumulation": 2}):
        given = config(tiny_shards, tmp_path, engine=engine)
        whole = first_batches(given, ALONE, plan_of(given), 10)
        assert [batches[0].is_2d for batches in whole] == [True, False]
        assert [sum(map(len, batches)) for batches in whole] == [12, 10]
        if engine:
            continue
        parts = [
            first_batches(given, World(rank, 2, rank, 2, torch.device("cpu")), plan_of(given), 10) for rank in (0, 1)
        ]
        for kind, batches in enumerate(whole):
            assert len(parts[0][kind]) == len(parts[1][kind]) == len(batches)
            for number, batch in enumerate(batches):
                halves = [part[kind][number] for part in parts]
                assert torch.equal(batch.voxels, torch.cat([half.voxels for half in halves]))
    few = first_batches(config(tiny_shards, tmp_path), ALONE, plan_of(config(tiny_shards, tmp_path)), 1)
    assert [len(batches) for batches in few] == [1, 1]
    paired = config(tiny_shards, tmp_path)
    paired = paired.model_copy(update={"data": paired.data.model_copy(update={"positives": "crops"})})
    assert [sum(map(len, batches)) for batches in first_batches(paired, ALONE, plan_of(paired), 10)] == [24, 20]


def test_they_are_due_at_checkpoints_or_every_so_often_and_at_the_end(tiny_shards, tmp_path):
    def due(**changes):
        given = config(tiny_shards, tmp_path, **changes)
        monitors = Monitors(given, ALONE, plan_of(given))
        return [step for step in range(1, 11) if monitors.due(step)]

    assert due() == [4, 8, 10]
    assert due(monitor_every=3) == [3, 6, 9, 10]
    assert due(monitor_crops=0) == []


def test_a_collapse_is_said_once_and_again_after_a_recovery(tiny_shards, tmp_path):
    given = config(tiny_shards, tmp_path)
    monitors = Monitors(given, ALONE, plan_of(given))
    assert monitors.warnings({"rankme_2d": 60.0, "feature_std_2d": 0.1}) == []
    assert monitors.warnings({"rankme_2d": 3.1}) == []
    (said,) = monitors.warnings({"rankme_2d": 2.9, "rankme_3d": 5.0})
    assert said == "rankme_2d is 2.9, below 3.0: the encoder's features have collapsed"
    assert monitors.warnings({"rankme_2d": 2.5}) == []
    assert monitors.warnings({"rankme_2d": 20.0}) == []
    assert len(monitors.warnings({"rankme_2d": 2.5, "rankme_3d": 1.4})) == 2
    assert monitors.first == {"rankme_2d": 60.0, "rankme_3d": 5.0}


RUN = """
import json, os
from pathlib import Path
import torch
from scanfoundry.configs.loading import check
from scanfoundry.pretrain.distributed import rng
from scanfoundry.datasets.plan import SamplingPlan
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.logging.monitors import Monitors
from scanfoundry.backbones.registry import build

world = join("cpu", 1)
config = PretrainConfig.model_validate_json(os.environ["CONFIG"])
for stage in (0, 3):
    torch.manual_seed(0)
    objective = config.objective.build(build(config.backbone))
    engine = Engine(objective, config.optimiser, EngineConfig(zero_stage=stage), world)
    monitors = Monitors(config, world, SamplingPlan(config.data, config.seed))
    before = torch.get_rng_state()
    engine.train()
    one, other = monitors.measure(engine), monitors.measure(engine)
    assert torch.equal(before, torch.get_rng_state()) and engine.objective.training
    assert one == other, (one, other)
    print(json.dumps(one))
"""


def test_they_are_the_same_numbers_at_two_ranks_and_at_zero_3(ranks, tiny_shards, tmp_path):
    given = config(tiny_shards, tmp_path / "run").model_dump_json()
    found = [json.loads(line) for size in (1, 2) for line in ranks(RUN, size, CONFIG=given).splitlines()]
    assert len(found) == 4
    kinds = [f"{name}_{kind}" for kind in ("2d", "3d") for name in ("rankme", "feature_std", "feature_std_plain")]
    assert list(found[0]) == kinds
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    assert 1 < found[0]["rankme_2d"] < 16
    assert 0 < found[0]["feature_std_2d"] < 1
