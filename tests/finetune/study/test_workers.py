"""Trials in several processes: the numbers of one process, whatever happens to any of them."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
import warm
from studies import numbers

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.log import shown_log
from scanfoundry.finetune.run_study import prepare, run
from scanfoundry.finetune.study import workers
from scanfoundry.finetune.study.budget import seconds_for_each
from scanfoundry.finetune.study.claims import CLAIMS, claimed
from scanfoundry.finetune.study.run_folder import claim
from scanfoundry.finetune.study.shared_check import checked_by_parent, shared_check
from scanfoundry.finetune.study.worker import Job
from scanfoundry.finetune.study.workers import Worker, Workers
from scanfoundry.finetune.training.interrupts import Stopped

TINY = {"name": "resenc", "features": [8, 12, 16], "blocks": [1, 1, 1], "strides": [[2, 2, 2], [2, 2, 2]]}


@pytest.fixture(autouse=True)
def shown():
    """What is logged is shown, as in the command line."""
    with shown_log():
        yield


@pytest.fixture
def warm_processes(monkeypatch):
    """The study's processes start at once; a new one of python is tried below."""
    parts = SimpleNamespace(Popen=warm.Popen, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(workers, "subprocess", parts)


@pytest.fixture
def small(study, slices, site_key_file, fixed_key, monkeypatch):
    """Four trials of seconds."""
    monkeypatch.setenv("SCANFOUNDRY_KEY_FILE", str(fixed_key("workers")))

    def make(**options):
        return study("classification", slices, backbone=TINY, plan={"patch": [1, 48, 48], "batch": 4}, shots=[4],
                     seeds=[0, 1, 2, 3], schedule={"steps": 4, "warmup_steps": 1}, checkpoint_minutes=0,
                     **options)  # fmt: skip

    return make


def test_several_processes_give_the_numbers_of_one(small, warm_processes, tmp_path, monkeypatch, capfd):
    straight = small(run_dir=tmp_path / "straight")
    run(straight)
    config, real, met, started = small(processes=2), Workers._handle, [], []
    ends = [lambda worker: os.kill(os.getpid(), signal.SIGINT)]

    def meeting(self, worker, name, values):
        started.append(worker)
        if name == "step" and values[0] == 2 and not met:
            met.append(worker)
            ends[-1](worker)
        real(self, worker, name, values)

    monkeypatch.setattr(Workers, "_handle", meeting)

    with pytest.raises(Stopped, match="the same command goes on") as caught:
        run(config)
    assert caught.value.signal == signal.SIGINT
    assert not (config.run_dir / "results.json").exists()
    assert all(worker.process.poll() is not None for worker in started)

    ends.append(lambda worker: worker.process.kill())
    met.clear()
    capfd.readouterr()
    run(config)
    assert "its trial is taken over" in capfd.readouterr().err
    assert numbers(config.run_dir) == numbers(straight.run_dir)
    assert len({worker.process.pid for worker in started}) >= 3  # two starts of two; one may have sent nothing
    assert not (config.run_dir / CLAIMS).exists()


def test_workers_take_over_what_the_check_of_the_cases_found(small, monkeypatch):
    config = small()
    study = prepare(config, notes=False)
    with shared_check(study.checked) as descriptor:
        first, second = checked_by_parent(descriptor), checked_by_parent(descriptor)  # as two processes
    assert first == second == study.checked
    monkeypatch.setattr("scanfoundry.finetune.study.prepare.check_cases", None)  # would fail
    again = prepare(config, notes=False, known=first)
    assert (again.spec, again.sides) == (study.spec, study.sides)


def test_a_mistake_in_one_process_ends_the_study(small, warm_processes):
    config = small(processes=2)
    broken = config.model_copy(update={"schedule": config.schedule.model_copy(update={"lr": 1e30})})
    with pytest.raises(UserError, match=r"lower schedule\.lr"):
        run(broken)


def test_a_signal_between_two_starts_leaves_no_process(small, warm_processes, monkeypatch):
    config, started = small(processes=2), []

    class Signalled(Worker):
        def __init__(self, job):
            super().__init__(job)
            started.append(self)
            if len(started) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(workers, "Worker", Signalled)
    with pytest.raises(Stopped):
        run(config)
    assert started
    assert all(worker.process.poll() is not None for worker in started)


def test_a_worker_ends_with_the_process_that_started_it(small, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yaml.py").write_text("raise SystemExit('a module of the folder that we are in')\n")
    config = small()
    prepare(config)
    claim(config)
    worker = Worker(Job(run_dir=config.run_dir, threads=torch.get_num_threads()))
    while worker.connection.recv()[0] != "step":
        pass
    os.close(worker._alive)
    assert worker.process.wait(60) == 1


def test_a_trial_has_one_claim_at_a_time(tmp_path):
    for _ in range(2):
        with claimed(tmp_path, "a") as first, claimed(tmp_path, "a") as second, claimed(tmp_path, "b") as third:
            assert (first, second, third) == (True, False, True)


def test_time_is_shared_among_processes():
    assert seconds_for_each(100.0, 4, [], 2) == 100.0
    assert seconds_for_each(100.0, 4, [30.0, 80.0], 2) == pytest.approx(60.0)  # 200 - 30 - 50, for two
