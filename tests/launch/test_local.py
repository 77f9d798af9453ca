"""Launching for real on this machine: two processes, lost ones, stopped ones, a sweep, code that changes meanwhile.

On SLURM: test_slurm.py.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import warm

from scanfoundry.launch.cluster import source_copy

# One worker: the runs are compared with each other, and their ranks want the other core.
pytestmark = pytest.mark.xdist_group("cluster")

SCANFOUNDRY = str(Path(sys.executable).parent / "scanfoundry")


def test_two_local_processes_leave_the_run_folder_of_one(lab, tools, two_local):
    losses, *_ = tools
    warm.run([warm.SCANFOUNDRY, "pretrain", lab.config("run")], check=True, timeout=240)
    run = lab.folder / "run"
    assert {p.name for p in two_local.iterdir()} - {"jobs"} == {p.name for p in run.iterdir()}
    one, two = losses(run), losses(two_local)
    assert two[:2] == pytest.approx(one[:2], rel=1e-6)
    # Later steps only stay close: Adam turns the rounding of gradients that are zero in exact arithmetic (a bias
    # before a norm) into whole steps of the learning rate. test_engine holds the arithmetic itself to 1e-5.
    assert two == pytest.approx(one, rel=2e-2)


def test_a_lost_rank_ends_the_others_and_the_run_goes_on_to_the_same_bytes(lab, tools, two_local):
    losses, notes, until, ranks = tools
    run = lab.folder / "run"
    words = ["--cluster", "local", "--tasks-per-node", "2"]
    process = lab.start(lab.config("run"), *words, WANDB_API_KEY="hush-4711")
    until(lambda: len(losses(run)) >= 5)
    first = ranks(run)
    assert sorted(first) == [0, 1]
    lost = time.monotonic()
    os.kill(first[1], signal.SIGKILL)
    until(lambda: any(note["event"] == "end" for note in notes(run)), 60)
    assert time.monotonic() - lost < 60
    assert "RUNNING" in lab.launch("status", run)
    until(lambda: len([note for note in notes(run) if note["event"] == "start"]) == 2)
    os.kill(controller(run), signal.SIGUSR2)  # as SLURM tells at a preemption, here while the ranks still start
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    kinds = [note["kind"] for note in notes(run) if note["event"] == "end"]
    assert kinds == ["crashed", "stopped", "complete"]
    assert "rank 1" in notes(run)[1]["reason"]
    assert losses(run) == losses(two_local)
    assert (run / "model.safetensors").read_bytes() == (two_local / "model.safetensors").read_bytes()
    said = lab.launch("status", run)
    assert "COMPLETED" in said
    assert "20/20" in said
    assert "done: 20 steps" in lab.launch("logs", run, "--lines", "5")
    written = [path for path in run.rglob("*") if path.is_file() and "code" not in path.parts]
    assert len(written) > 10
    assert not [path for path in written if b"hush-4711" in path.read_bytes()]


def controller(run: Path) -> int:
    """The process that holds a local job."""
    return int(json.loads(next(run.glob("jobs/*/job.json")).read_text())["job_id"])


def test_crashes_without_progress_end_and_say_so(lab):
    defaults = lab.defaults(setup=["echo no module today >&2", "exit 7"], max_crash_requeues=2)
    said = lab.launch(lab.config("run"), "--cluster", "local", "--defaults", defaults, code=1)
    assert "ended 3 times with its newest checkpoint at no checkpoint at all" in said
    assert "exit 7" in said
    log = lab.launch("logs", lab.folder / "run")
    assert log.count("no module today") == 3
    assert "FAILED" in lab.launch("status", lab.folder / "run")


def test_a_mistake_is_final(lab, tools):
    _, notes, _, _ = tools
    words = [f"data.sources.0.path={lab.folder / 'nowhere'}", "--cluster", "local", "--tasks-per-node", "2"]
    said = lab.launch(lab.config("run"), *words, code=2)
    assert "nowhere" in said
    assert "--no-check" in said
    assert not (lab.folder / "run").exists()  # nothing was queued
    said = lab.launch(lab.config("run"), *words, "--no-check", code=2)
    assert "nowhere" in said
    assert [note["kind"] for note in notes(lab.folder / "run") if note["event"] == "end"] == ["final"]


def test_cancel_saves_ends_and_leaves_a_run_that_can_go_on(lab, tools):
    losses, notes, until, _ = tools
    run = lab.folder / "run"
    config = lab.config("run", steps=300, checkpoint_every=1000, monitor_crops=0)
    lab.launch(config, "--cluster", "local", "--no-wait")
    until(lambda: len(losses(run)) >= 3)
    assert "is at work" in lab.launch(config, "--cluster", "local", code=2)
    said = lab.launch("cancel", run)
    step = len(losses(run))
    assert f"newest checkpoint is step {step}" in said
    assert "CANCELLED" in lab.launch("status", run)
    assert [note["kind"] for note in notes(run) if note["event"] == "end"] == ["cancelled"]
    assert "no job runs or waits" in lab.launch("cancel", run)
    lab.launch(config, "--cluster", "local", f"steps={step + 1}")
    assert len(losses(run)) == step + 1


def test_a_sweep_runs_one_after_another_each_in_its_folder(lab, tools):
    losses, *_ = tools
    sweep = lab.folder / "sweep"
    config = lab.config("sweep", steps=3)
    assert "--no-wait" in lab.launch(config, "--cluster", "local", "seed=1,2", "--no-wait", code=2)
    assert "steps" in lab.launch(config, "--cluster", "local", "steps=4,none", code=2)
    assert not sweep.exists()  # all are checked before any begins
    lab.launch(config, "--cluster", "local", "seed=1,2")
    assert {len(losses(sweep / name)) for name in ("seed=1", "seed=2")} == {3}
    assert losses(sweep / "seed=1") != losses(sweep / "seed=2")
    said = lab.launch("status", sweep)
    assert said.count("COMPLETED") == 2
    assert "seed=1, seed=2" in lab.launch("logs", sweep, code=2)
    assert "done: 3 steps" in lab.launch("logs", sweep / "seed=2")


def test_a_requeued_job_runs_the_code_it_was_submitted_with(lab, tools):
    losses, notes, until, _ = tools
    tree, run = lab.folder / "tree", lab.folder / "run"
    source_copy.take(tree)  # a working tree that we may damage
    process = lab.start(lab.config("run", steps=8), "--cluster", "local", PYTHONPATH=str(tree))
    until(lambda: len(losses(run)) >= 2)
    for name in ("pretrain/training/loop.py", "launch/cluster/rank_main.py", "launch/cluster/policy.py"):
        (tree / "scanfoundry" / name).chmod(0o644)
        (tree / "scanfoundry" / name).write_text("raise RuntimeError('the working tree was edited')\n")
    os.kill(controller(run), signal.SIGUSR2)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert len([note for note in notes(run) if note["event"] == "start"]) == 2
    assert len(losses(run)) == 8
    facts = json.loads(next(run.glob("jobs/*/job.json")).read_text())
    assert len(facts["code"]) == 64


def test_a_snapshot_is_the_whole_package_and_its_hash_tells_a_change(tmp_path, monkeypatch):
    one = source_copy.take(tmp_path / "one")
    names = {p.relative_to(tmp_path / "one" / "scanfoundry").as_posix() for p in (tmp_path / "one").rglob("*.*")}
    assert {"configs/cluster/example.yaml", "launch/cli/main.py", "pretrain/objectives/mae.py"} <= names
    assert not any("__pycache__" in name for name in names)
    files = source_copy.package_files()
    changed = tmp_path / "task.py"
    changed.write_bytes(files["launch/cluster/rank_main.py"].read_bytes() + b"\n")
    monkeypatch.setattr(source_copy, "package_files", lambda: files | {"launch/cluster/rank_main.py": changed})
    assert source_copy.take(tmp_path / "two") != one
    monkeypatch.undo()
    assert source_copy.take(tmp_path / "three") == one


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "cloud"], "choose slurm or local"),
        (["--cluster", "local", "--nodes", "2"], "one node"),
        (["--cluster", "local", "--partition", "gpu", "--qos", "long"], "cannot follow partition, qos"),
        (["--defaults", "nowhere"], "nowhere"),
        (["seed=1,1"], "repeated"),
        (["run_dir=a,b"], "run_dir"),
    ],
)
def test_wrong_options_are_one_line(lab, words: list[str], said: str):
    heard = lab.launch(lab.config("run"), *words, code=2)
    assert said in heard
    assert len(heard.strip().splitlines()) == 1
    assert not (lab.folder / "run").exists()


@pytest.mark.parametrize("word", ["status", "logs", "cancel"])
def test_a_folder_without_a_job_is_one_line(lab, word: str):
    for folder in (lab.folder, lab.folder / "nowhere"):
        heard = lab.launch(word, folder, code=2)
        assert len(heard.strip().splitlines()) == 1


def test_packed_convolutions_draw_their_picture_under_zero_3(lab):
    config = lab.config("run", steps=3, monitor_crops=0, engine={"zero_stage": 3})
    lab.launch(config, "--cluster", "local", "--tasks-per-node", "2")
    assert (lab.folder / "run" / "pictures" / "step-00000003.png").exists()
