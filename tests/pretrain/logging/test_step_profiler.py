"""A trace of the steps that were asked for, once for each start of a run."""

import gzip
import json

import pytest
import torch
from pydantic import ValidationError

from scanfoundry.pretrain.config.profile import ProfileConfig
from scanfoundry.pretrain.distributed.world import ALONE, World
from scanfoundry.pretrain.logging.step_profiler import StepProfiler, part


def steps(profiler: StepProfiler, first: int, last: int) -> None:
    for step in range(first, last + 1):
        with part("step"):
            torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step(step)


def marks(path) -> int:
    """How many steps a trace shows."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    return len([event for event in events if event.get("name") == "scanfoundry: step"])


def test_the_steps_that_were_asked_for_are_traced(tmp_path):
    said: list[str] = []
    profiler = StepProfiler(ProfileConfig(steps=2, start=3), tmp_path, ALONE, said.append, 100)
    steps(profiler, 101, 110)
    profiler.close()
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "steps-00000104-00000105.json.gz"
    assert marks(path) == 2
    assert said == [f"a trace of steps 104 to 105 is in {path}"]


def test_a_run_that_stops_in_between_leaves_what_was_traced(tmp_path):
    profiler = StepProfiler(ProfileConfig(steps=5, start=1), tmp_path, ALONE, print, 0)
    steps(profiler, 1, 3)
    profiler.close()
    (path,) = (tmp_path / "profile").iterdir()
    assert marks(path) == 2


@pytest.mark.parametrize("stop", [0, 1])
def test_a_run_that_stops_before_leaves_nothing(tmp_path, stop: int):
    profiler = StepProfiler(ProfileConfig(steps=5, start=4), tmp_path, ALONE, print, 0)
    steps(profiler, 1, stop)
    profiler.close()
    assert not (tmp_path / "profile").exists()


def test_other_ranks_and_runs_without_it_trace_nothing(tmp_path):
    for config, rank in ((None, 0), (ProfileConfig(steps=1, start=1), 1)):
        profiler = StepProfiler(config, tmp_path, World(rank, 2, rank, 2, torch.device("cpu")), print, 0)
        steps(profiler, 1, 4)
        profiler.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"start": 0}, {"step": 3}])
def test_what_makes_no_sense_is_refused(wrong: dict):
    with pytest.raises(ValidationError):
        ProfileConfig.model_validate(wrong)
