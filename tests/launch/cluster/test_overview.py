"""What `launch status` reads out of folders, with SLURM's answer and without."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.cli.jobs import status_command
from scanfoundry.launch.cluster import overview, slurm, sweep
from scanfoundry.launch.cluster.job_folder import JobFolder, JobRecord

FACTS = JobRecord(
    cluster="slurm", run_dir="", logs="", tasks=2, steps=100, host=os.uname().nodename, submitted=0.0, timeout_min=60,
    signal_delay_s=120, max_requeues=5, max_crash_requeues=3, job_id="12",
)  # fmt: skip


def make_run(folder: Path, stamp: str = "1", **facts) -> JobFolder:
    job = JobFolder(folder / "jobs" / stamp)
    job.write_record(replace(FACTS, run_dir=str(folder), logs=str(job.path), **facts))
    return job


@pytest.fixture
def no_slurm(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_a_row_says_all_that_the_folder_knows(tmp_path, no_slurm):
    job = make_run(tmp_path)
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "lo')  # half a line
    os.utime(tmp_path / "metrics.jsonl", (time.time() - 500, time.time() - 500))
    for name in ("step-00000040", "step-00000100", ".tmp-step-00000200"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    for life in ("12-0", "12-1"):
        job.note("start", life=life, step=0)
    job.note("end", life="12-0", kind="crashed", step=40, reason="a rank was lost", action="requeue")
    row = overview.job_statuses(tmp_path)[0]
    assert (row.job_id, row.state, row.requeues, row.step, row.steps, row.loss) == ("12", "UNKNOWN", 1, 2, 100, 0.5)
    assert row.checkpoint == 100
    assert row.seconds_since_log == pytest.approx(500, abs=60)
    assert row.last_verdict == "a rank was lost"


@pytest.mark.parametrize(
    ("kind", "state"),
    [("complete", "COMPLETED"), ("cancelled", "CANCELLED"), ("final", "FAILED"), ("crashed", "FAILED")],
)
def test_without_slurm_the_last_word_is_the_state(tmp_path, no_slurm, kind: str, state: str):
    job = make_run(tmp_path)
    job.note("end", life="12-0", kind=kind, step=4, reason="", action="end")
    assert overview.job_statuses(tmp_path)[0].state == state
    assert not overview.is_active(job)


def test_slurms_word_counts_for_what_has_no_last_word(tmp_path, monkeypatch):
    make_run(tmp_path)
    monkeypatch.setattr(slurm, "states", lambda ids: {"12": "PENDING"})
    assert overview.job_statuses(tmp_path)[0].state == "PENDING"
    assert overview.is_active(overview.runs_in(tmp_path)[""][0])
    monkeypatch.setattr(slurm, "states", lambda ids: {"12": "OUT_OF_MEMORY"})
    assert not overview.is_active(overview.runs_in(tmp_path)[""][0])


def test_a_local_job_that_vanished_is_lost_and_one_of_another_machine_is_said_to_be_there(tmp_path, no_slurm):
    gone = 2**22 - 3  # beyond what this test could have started
    make_run(tmp_path / "here", cluster="local", job_id=str(gone))
    make_run(tmp_path / "there", cluster="local", job_id=str(os.getpid()), host="elsewhere")
    assert overview.job_statuses(tmp_path / "here")[0].state == "LOST"
    assert overview.job_statuses(tmp_path / "there")[0].state == "ON elsewhere"
    # A process of that id that is something else: this test.
    job = make_run(tmp_path / "mine", cluster="local", job_id=str(os.getpid()))
    assert not overview.is_active(job)


def test_a_sweep_has_a_row_each_and_the_newest_submission_counts(tmp_path, no_slurm, capsys):
    sweep.write(tmp_path, sweep.expand(["seed=1,2,3"]))
    make_run(tmp_path / "seed=1", job_id="12_0")
    make_run(tmp_path / "seed=2", stamp="1", job_id="12_1")
    make_run(tmp_path / "seed=2", stamp="2", job_id="15_0")
    assert [(row.name, row.job_id) for row in overview.job_statuses(tmp_path)] == [
        ("seed=1", "12_0"),
        ("seed=2", "15_0"),
    ]
    assert len(overview.job_statuses(tmp_path, everything=True)) == 3
    status_command(tmp_path, everything=False)
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == [
        "run",
        "job",
        "state",
        "requeues",
        "step",
        "loss",
        "last",
        "line",
        "checkpoint",
    ]
    assert "15_0" in said
    assert "0/100" in said


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError):
            overview.runs_in(folder)
