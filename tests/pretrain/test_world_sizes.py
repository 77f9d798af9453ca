"""A run that goes on with other numbers of processes sees the same crops and has the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "world_sizes.py"


@pytest.mark.slow
@pytest.mark.parametrize(("case", "stage"), [("mae_tiny", 3), ("spark_sgd", 2)])
def test_two_then_one_then_four_then_two(tiny_shards, case: str, stage: int):
    words = ["--shards", str(tiny_shards["mr"]), "--cases", case, "--stages", str(stage), "--each", "3", "--out", ""]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}  # it imports `record`
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])  # DeepSpeed says on standard output that it was loaded
    assert found["stopped_after"][-1] == 12
    assert found["same_world_size_identical"]
    assert found["crops_the_same"]
    assert found["crops"] == 96
    assert found["largest_relative_difference"] < 1e-6
