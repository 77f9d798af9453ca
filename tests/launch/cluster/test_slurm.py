"""Launching on a real SLURM cluster of two nodes: `.ci/run` starts one with tests/slurm/start_slurm.sh."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("cluster")]


@pytest.fixture(autouse=True)
def slurm() -> None:
    if shutil.which("sinfo") is None or subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20).returncode:
        pytest.skip("no SLURM cluster answers here; tests/slurm/start_slurm.sh starts one (root, Debian)")


def job_id(run_dir: Path) -> str:
    return json.loads(sorted(run_dir.glob("jobs/*/job.json"))[-1].read_text())["job_id"]


def scontrol(job: str) -> str:
    return subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout


def test_two_slurm_nodes_compute_what_two_local_processes_do(lab, tools, two_local):
    losses, *_ = tools
    said = lab.launch(lab.config("run"), "--nodes", "2", "--time", "10", "--wait")
    assert "complete: step 20" in said
    run = lab.folder / "run"
    assert {p.name for p in run.iterdir()} == {p.name for p in two_local.iterdir()}
    assert losses(run) == losses(two_local)
    assert (run / "model.safetensors").read_bytes() == (two_local / "model.safetensors").read_bytes()


def test_preempted_then_a_rank_killed_it_ends_with_the_same_bytes(lab, tools, two_local):
    losses, notes, until, ranks = tools
    run = lab.folder / "run"
    # A limit below ten minutes: submitit's own rule would count the preemption as a timeout.
    lab.launch(lab.config("run"), "--nodes", "2", "--time", "8")
    job = job_id(run)
    until(lambda: len(losses(run)) >= 3)
    assert "RUNNING" in lab.launch("status", run)
    # A job of the higher partition that wants both nodes whole: SLURM preempts ours.
    other = ["-p", "high", "--nodes=2", "--ntasks-per-node=2", "--mem=64", "--time=1", "--output=/dev/null"]
    subprocess.run(["sbatch", *other, "--wrap", "sleep 1"], check=True, capture_output=True)
    until(lambda: len([note for note in notes(run) if note["event"] == "start"]) == 2)
    before = len(losses(run))
    until(lambda: len(losses(run)) >= before + 2)
    lost = time.monotonic()
    os.kill(ranks(run)[1], signal.SIGKILL)
    until(lambda: len([note for note in notes(run) if note["event"] == "end"]) == 2, 60)
    assert time.monotonic() - lost < 60
    until(lambda: notes(run)[-1].get("kind") == "complete")
    assert [note["kind"] for note in notes(run) if note["event"] == "end"] == ["stopped", "crashed", "complete"]
    assert "Restarts=2" in scontrol(job)
    assert losses(run) == losses(two_local)
    assert (run / "model.safetensors").read_bytes() == (two_local / "model.safetensors").read_bytes()
    until(lambda: "COMPLETED" in lab.launch("status", run), 30)
    assert "done: 20 steps" in lab.launch("logs", run)
    assert "submitit" in lab.launch("logs", run, "--rank", "1")


def test_a_hung_rank_leaves_its_stack_and_the_job_goes_on(lab, tools, two_local):
    losses, notes, until, ranks = tools
    run = lab.folder / "run"
    lab.launch(lab.config("run"), "--nodes", "2", "--time", "10", "step_timeout_s=10")
    until(lambda: len(losses(run)) >= 3)
    stopped = ranks(run)[1]
    os.kill(stopped, signal.SIGSTOP)
    hung = time.monotonic()
    until(lambda: any(note["event"] == "end" for note in notes(run)), 60)
    assert time.monotonic() - hung < 60
    assert not Path(f"/proc/{stopped}").exists()
    assert "rank 0 finished no step for 10 s" in notes(run)[-1]["reason"]
    assert notes(run)[-1]["reason"].count("rank 1") == 1  # it could not say a word
    log = lab.launch("logs", run, "--lines", "500")
    assert "rank 0 finished no step for 10 s" in log
    assert "loop.py" in log  # the stack
    until(lambda: notes(run)[-1].get("kind") == "complete")
    assert losses(run) == losses(two_local)


def test_a_sweep_is_one_array_a_mistake_ends_alone_and_a_cancelled_run_stays_ended(lab, tools):
    losses, notes, until, _ = tools
    sweep = lab.folder / "sweep"
    config = lab.config("sweep", steps=500, checkpoint_every=1000, monitor_crops=0)
    path = lab.shards["mr"]
    said = lab.launch(config, f"data.sources.0.path={path},{lab.folder / 'nowhere'}", "--time", "10", "--no-check")
    good, bad = [Path(line.split("run folder ")[1].split(";")[0]) for line in said.splitlines()]
    ids = [job_id(good), job_id(bad)]
    assert ids == [f"{ids[0].split('_')[0]}_{i}" for i in range(2)]
    until(lambda: len(losses(good)) >= 2 and any(note["event"] == "end" for note in notes(bad)))
    assert notes(bad)[-1]["kind"] == "final"
    assert "nowhere" in notes(bad)[-1]["reason"]
    subprocess.run(["scancel", "--signal", "USR2", ids[0]], check=True)
    until(lambda: len([note for note in notes(good) if note["event"] == "start"]) == 2)  # requeued alone
    assert "Restarts=1" in scontrol(ids[0])
    assert "Restarts=0" in scontrol(ids[1])
    heard = lab.launch("cancel", sweep)
    step = len(losses(good))
    assert f"job {ids[0]} ended; its newest checkpoint is step {step}" in heard
    until(lambda: "CANCELLED" in scontrol(ids[0]) and "FAILED" in scontrol(ids[1]), 30)
    status = lab.launch("status", sweep)
    assert "CANCELLED" in status
    assert "FAILED" in status
    subprocess.run(["scontrol", "requeue", ids[0]], capture_output=True)  # somebody insists
    until(lambda: "JobState=CANCELLED" in scontrol(ids[0]), 60)
    assert len(losses(good)) == step


def test_the_trials_of_a_study_are_an_array_and_the_last_writes_the_report(lab, tools):
    _, notes, until, _ = tools
    said = lab.launch(lab.study("study"), "--time", "10", "--wait")
    trials = [Path(line.split("run folder ")[1].split(";")[0]) for line in said.splitlines() if "run folder" in line]
    ids = [job_id(trial) for trial in trials]
    assert ids == [f"{ids[0].split('_')[0]}_{i}" for i in range(2)]
    assert [notes(trial)[-1]["kind"] for trial in trials] == ["complete"] * 2
    assert (lab.folder / "study" / "report.html").exists()
    until(lambda: lab.launch("status", lab.folder / "study").count("COMPLETED") == 2, 30)


def test_a_cancelled_step_is_called_that_and_the_job_goes_on(lab, tools):
    losses, notes, until, _ = tools
    run = lab.folder / "run"
    lab.launch(lab.config("run"), "--time", "10")
    job = job_id(run)
    until(lambda: len(losses(run)) >= 3)
    subprocess.run(["scancel", f"{job}.0"], check=True)
    until(lambda: any(note["event"] == "end" for note in notes(run)))
    (end,) = [note for note in notes(run) if note["event"] == "end"]
    assert f"`scancel {job}.0` ended its step" in end["reason"]
    until(lambda: len([note for note in notes(run) if note["event"] == "start"]) == 2)
    assert notes(run)[-1]["step"] == end["step"]
    subprocess.run(["scancel", job], check=True)


def test_a_job_that_waits_is_cancelled_at_once(lab):
    config = lab.config("run")
    lab.launch(config, "--nodes", "2", "--time", "10", "--defaults", lab.defaults(sbatch={"begin": "now+1hour"}))
    run = lab.folder / "run"
    assert "PENDING" in lab.launch("status", run)
    assert "is at work" in lab.launch(config, code=2)
    assert "has no checkpoint" in lab.launch("cancel", run)
    assert "CANCELLED" in scontrol(job_id(run))


def test_what_slurm_refuses_is_one_line(lab):
    heard = lab.launch(lab.config("run"), "--partition", "nowhere", code=2)
    assert "could not submit to slurm" in heard
    assert "Invalid partition" in heard
    assert len(heard.strip().splitlines()) == 1
