"""The controller of local jobs with small tasks in place of training: time limit, lost ranks, stubborn ones."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scanfoundry.launch.cluster.job_folder import JobFolder, JobRecord

FACTS = JobRecord(
    cluster="local", run_dir="", logs="", tasks=2, steps=9, host="here", submitted=0.0, timeout_min=1,
    signal_delay_s=1, max_requeues=2, max_crash_requeues=1, job_id="1",
)  # fmt: skip
TASK = """
import os, signal, sys, time
from pathlib import Path
from scanfoundry.launch.cluster.job_folder import JobFolder
job, rank = JobFolder(Path(sys.argv[1])), int(os.environ["SUBMITIT_LOCAL_GLOBALID"])
life = os.environ["SUBMITIT_LOCAL_JOB_ID"] + "-" + os.environ["SCANFOUNDRY_LIFE"]
"""
SAVES = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
got = signal.sigwait({signal.SIGUSR2, signal.SIGTERM})
job.write_end(life, rank, "stopped", f"saved at {got}")
sys.exit(75)
"""
STUBBORN = """
if rank == 1:
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(100)
"""


def start(tmp_path: Path, task: str, facts: JobRecord) -> tuple[JobFolder, "subprocess.Popen[bytes]"]:
    job = JobFolder(tmp_path / "run" / "jobs" / "one")
    job.write_record(replace(facts, run_dir=str(tmp_path / "run"), logs=str(job.path)))
    script = tmp_path / "task.py"
    script.write_text(TASK + task)
    controller = (
        "import sys; from pathlib import Path; from scanfoundry.launch.cluster import local_controller as c; "
        "from scanfoundry.launch.cluster.job_folder import JobFolder; c.KILL_WAIT_S = 1.0; "
        "sys.exit(c.Controller(JobFolder(Path(sys.argv[1])), sys.argv[2]).run())"
    )
    command = f"exec {sys.executable} {script} {job.path}"
    return job, subprocess.Popen([sys.executable, "-c", controller, str(job.path), command])


AWAY = """
job.write_end(life, rank, "unreachable", "the data are away")
sys.exit(74)
"""


def ends(job: JobFolder) -> list[str]:
    return [note["kind"] for note in job.notes() if note["event"] == "end"]


def test_at_the_time_limit_all_are_told_and_start_again_until_that_leads_nowhere(tmp_path):
    job, process = start(tmp_path, SAVES, replace(FACTS, signal_delay_s=57))
    assert process.wait(60) == 1
    assert ends(job) == ["stopped"] * 3
    assert "3 starts in a row came to no new checkpoint" in job.notes()[-1]["reason"]
    assert sorted(path.parent.name[-2:] for path in job.path.glob("ends/*/1.json")) == ["-0", "-1", "-2"]


def test_who_survives_a_lost_rank_and_ignores_term_is_killed(tmp_path):
    started = time.monotonic()
    job, process = start(tmp_path, STUBBORN, FACTS)
    assert process.wait(60) == 1
    assert time.monotonic() - started < 50
    assert ends(job) == ["crashed", "crashed"]
    assert "signal 9" in job.notes()[-1]["reason"]


def test_a_cancel_ends_the_wait_for_storage(tmp_path):
    job, process = start(tmp_path, AWAY, replace(FACTS, tasks=1))
    while not ends(job):
        time.sleep(0.05)
    time.sleep(1)
    assert process.poll() is None  # it waits a minute
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 0
    assert job.is_cancelled


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_term_is_the_end_and_usr2_a_new_life(tmp_path, number: int):
    job, process = start(tmp_path, SAVES, FACTS)
    log = job.path / f"{process.pid}_0_log.out"
    while not log.exists():
        time.sleep(0.05)
    time.sleep(2)
    os.kill(process.pid, number)
    if number == signal.SIGUSR2:
        while len(ends(job)) < 1:
            time.sleep(0.05)
        assert process.poll() is None
        time.sleep(2)
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
    assert ends(job) == (["cancelled"] if number == signal.SIGTERM else ["stopped", "cancelled"])
    assert job.is_cancelled
    assert json.loads((job.path / "job.json").read_text())["tasks"] == 2
