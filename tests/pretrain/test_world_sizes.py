"""A run that goes on with other numbers of processes sees the same crops and has the same losses."""

import importlib
from pathlib import Path

import pytest
import warm

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(("case", "stage", "crop"), [("mae_tiny", 3, 16), ("spark_tiny", 2, 32)])
def test_two_then_one_then_four_then_two(tiny_shards, tmp_path, monkeypatch, case: str, stage: int, crop: int):
    monkeypatch.setenv("VIT_BLOCKS", "2")
    monkeypatch.syspath_prepend(BENCHMARKS)  # its processes look for it there, too
    benchmark = importlib.import_module("world_sizes")
    warm.ensure_server()  # which has loaded what the ranks need
    found = benchmark.compare(case, tiny_shards["mr"], stage, sizes=[2, 1, 4, 2], each=3, crop=crop, folder=tmp_path)
    assert found["stopped_after"][-1] == 12
    assert found["same_world_size_identical"]
    assert found["crops_the_same"]
    assert found["crops"] == 96
    assert found["largest_relative_difference"] < 1e-6
