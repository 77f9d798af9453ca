"""The table of `scanfoundry launch --dry-run`."""

import re

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.cluster.dry_run import describe
from scanfoundry.launch.cluster.submit import ClusterConfig
from scanfoundry.pretrain.config.run import PretrainConfig


def configured(**engine):
    return PretrainConfig.model_validate({
        "run_dir": "run", "steps": 100, "backbone": {"name": "vit", "size": "Ti"}, "objective": {"name": "mae"},
        "data": {"sources": [{"name": "a", "path": "a"}], "crop_2d": [32, 32], "batch_2d": 8}, "engine": engine,
    })  # fmt: skip


CLUSTER = ClusterConfig(nodes=2, tasks_per_node=2, gpus_per_node=2)


def advice_for(gpu_memory_gb):
    return describe(configured(zero_stage=2), CLUSTER.model_copy(update={"gpu_memory_gb": gpu_memory_gb}))[-1]


def test_the_configured_line_is_marked_and_the_advice_follows_the_limit():
    head, columns, *rows, advice = describe(configured(zero_stage=2), CLUSTER)
    assert "4 processes" in head
    assert re.search(r"[\d,]{7,} trainable", head)
    assert columns.split() == ["zero_stage", "checkpointing", "states", "activations", "peak", "host"]
    assert [row.startswith(">") for row in rows] == [False, False, True] + [False] * 5
    assert rows[2].split()[1:3] == ["2", "off"]
    assert "--gpu-memory" in advice
    peaks = {tuple(row.replace(">", " ").split()[:2]): float(row.replace(">", " ").split()[4]) for row in rows}
    own, plain = peaks["2", "off"], peaks["0", "off"]
    assert plain < own  # the reduce bucket is more than this small model
    assert "fits into 80 GB" in advice_for(80)
    between = (own + plain) / 2
    assert f"does not fit into {between:g} GB; engine.zero_stage=0" in advice_for(between)
    assert "nothing fits" in advice_for(0.001)


def test_memory_of_a_node_without_gpus_is_shared_by_its_processes():
    lines = describe(configured(), ClusterConfig(tasks_per_node=4, memory_gb=64))
    assert "fits into 16 GB" in lines[-1]
    assert "per process" in lines[0]


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"data\.batch_2d \(8\) does not divide among 3 processes"):
        describe(configured(), ClusterConfig(tasks_per_node=3))
