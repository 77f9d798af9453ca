"""The shell's part in a SLURM job, tried in a real shell; what scontrol and sbatch would say is played by scripts."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, recipes
from scanfoundry.launch.cluster import after_failure, slurm
from scanfoundry.launch.cluster.environment import exports
from scanfoundry.launch.cluster.job_folder import JobFolder, JobRecord
from scanfoundry.launch.cluster.options import ClusterConfig, check_own_format
from scanfoundry.launch.cluster.submit import script


@pytest.fixture
def job(tmp_path) -> JobFolder:
    folder = JobFolder(tmp_path / "run with a space" / "jobs" / "one")
    folder.write_record(JobRecord(
        cluster="slurm", run_dir=str(tmp_path / "run with a space"), logs=str(folder.path), tasks=1, steps=9,
        host="here", submitted=0.0, timeout_min=60, signal_delay_s=120, max_requeues=5, max_crash_requeues=1,
        job_id="12",
    ))  # fmt: skip
    after_failure.write_array_index(folder.path, [folder.path])
    return folder


def live(job: JobFolder, monkeypatch, tmp_path: Path, tasks: str, show: str = "JobState=RUNNING Reason=None") -> str:
    """Run the script that sbatch would, with `tasks` in place of srun; gives what scontrol and scancel were asked."""
    bin = tmp_path / "bin"
    bin.mkdir(exist_ok=True)
    for name, body in (("srun", tasks), ("scancel", f"echo scancel $@ >> {tmp_path}/asked; kill $PPID"),
                       ("scontrol", f"[ $1 = show ] && echo '{show}' || echo $@ >> {tmp_path}/asked")):  # fmt: skip
        (bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    (tmp_path / "asked").write_text("")
    text = script(ClusterConfig(setup=("true",)), job.path, None, 1)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    return f"{(tmp_path / 'asked').read_text()}code {done.returncode}\n{done.stderr}"


def test_a_lost_rank_is_requeued_a_second_one_without_progress_ends_the_job(job, monkeypatch, tmp_path):
    heard = live(job, monkeypatch, tmp_path, "exit 137")
    assert "requeue 12" in heard
    assert "signal 9" in heard
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    heard = live(job, monkeypatch, tmp_path, "exit 137")
    assert "requeue" not in heard.splitlines()[0]
    assert "code 1" in heard
    assert [note["life"] for note in job.notes()] == ["12-0", "12-1"]


LOG = "{folder}/12_0_log.out"
CANCELLED = "slurmstepd-n1: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-30T19:37:39 ***"
LOST = "srun: error: n1: task 0: Killed\nsrun: launch/slurm: _step_signal: Terminating StepId=12.0\n" + CANCELLED
OVER = "slurmstepd-n1: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-30T19:37:39 DUE TO TIME LIMIT ***"


@pytest.mark.parametrize(("log", "called"), [(CANCELLED, True), (LOST, False), (OVER, False), ("", False)])
def test_a_cancelled_step_is_called_that_and_a_lost_rank_is_not(job, monkeypatch, tmp_path, log: str, called: bool):
    Path(LOG.format(folder=job.path)).write_text(f"{CANCELLED}\nscanfoundry: job 12: an earlier life\n{log}\n")
    heard = live(job, monkeypatch, tmp_path, "exit 137")
    assert "requeue 12" in heard
    assert ("`scancel 12.0` ended its step" in heard) == called
    assert ("memory runs out" in heard) != called


def test_the_next_start_waits_for_storage_that_is_away(job, monkeypatch, tmp_path):
    job.write_end("12-0", 0, "unreachable", "Stale file handle")
    heard = live(job, monkeypatch, tmp_path, "exit 74")
    assert heard.splitlines()[:2] == ["requeue 12", "update JobId=12 StartTime=now+60"]
    assert "Stale file handle" in heard


def test_a_mistake_and_a_cancel_are_not_requeued(job, monkeypatch, tmp_path):
    job.write_end("12-0", 0, "final", "lower optimiser.lr")
    heard = live(job, monkeypatch, tmp_path, "exit 2")
    assert heard.startswith("code 2")
    assert "lower optimiser.lr" in heard
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    job.write_end("12-1", 0, "stopped", "saved")
    job.cancel()
    heard = live(job, monkeypatch, tmp_path, "exit 75")
    assert heard.startswith("scancel 12")


def test_what_slurm_ended_itself_is_left_to_slurm(job, monkeypatch, tmp_path):
    heard = live(job, monkeypatch, tmp_path, "exit 143", show="JobState=COMPLETING Reason=None")
    assert heard.startswith("code 143")
    assert job.notes() == []


def test_at_the_time_limit_the_guard_asks_for_the_next_life(job, monkeypatch, tmp_path):
    limit = "sleep 2; kill -TERM $(pgrep -P $PPID -f 'after_failure.* guard'); sleep 4; exit 137"
    heard = live(job, monkeypatch, tmp_path, limit, show="JobState=COMPLETING Reason=TimeLimit")
    assert heard.startswith("requeue 12")
    assert heard.count("requeue 12") == 1
    assert "signal_delay_s" in heard
    assert [note["kind"] for note in job.notes()] == ["stopped"]


def test_the_script_says_what_was_asked_and_nothing_secret(job, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "hush")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    config = check(ClusterConfig, {
        "nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8, "cpus_per_task": 12, "memory_gb": 480, "account": "a",
        "qos": "long", "constraint": "a100", "array_parallelism": 3, "env": {"NCCL_SOCKET_IFNAME": "ib 0"},
        "sbatch": {"exclusive": True, "mail_type": "FAIL", "requeue-hold": False},
    }, "test")  # fmt: skip
    text = script(config, job.path, tmp_path / "code", 5)
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=12", "--mem=491520M",
                 "--account=a", "--qos=long", "--constraint=a100", "--array=0-4%3", "--exclusive", "--mail-type=FAIL",
                 "--requeue", "--signal=USR2@120", "--time=1440", "--export=ALL"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "export NCCL_SOCKET_IFNAME='ib 0'" in text
    assert f"export PYTHONPATH={tmp_path / 'code'}:/mine" in text
    assert "--kill-on-bad-exit=1" in text
    assert "hush" not in text
    assert "requeue-hold" not in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_tasks_may_run_in_a_container_and_what_asks_slurm_does_not(job):
    command = "apptainer exec --nv /images/scanfoundry.sif python"
    text = script(ClusterConfig(python=command), job.path, None, 1)
    (task,) = [line for line in text.splitlines() if line.startswith("srun")]
    assert f"{command} -u -m submitit.core._submit" in task
    assert text.count(command) == 1
    assert f"{sys.executable} -m scanfoundry.launch.cluster.after_failure" in text
    with pytest.raises(UserError, match="line break"):
        check(ClusterConfig, {"python": "python\nrm"}, "launch options")
    with pytest.raises(UserError, match="cannot follow python"):
        check_own_format("local", ClusterConfig(python=command))


def test_the_users_own_variables_win_over_defaults_and_the_sites_over_both(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    assert exports(ClusterConfig(), None)["NCCL_DEBUG"] == "INFO"
    assert exports(ClusterConfig(env={"NCCL_DEBUG": "TRACE"}), None)["NCCL_DEBUG"] == "TRACE"
    assert exports(ClusterConfig(), None)["PYTHONSAFEPATH"] == "1"


def test_the_cores_of_a_task_beat_the_threads_of_the_login_node(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert exports(ClusterConfig(cpus_per_task=12), None)["OMP_NUM_THREADS"] == "12"
    assert exports(ClusterConfig(cpus_per_task=12, env={"OMP_NUM_THREADS": "6"}), None)["OMP_NUM_THREADS"] == "6"


def test_a_job_finds_the_plug_ins_by_paths_of_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCANFOUNDRY_PLUGINS", "toy.py:/other/toy2.py")
    assert exports(ClusterConfig(), None)["SCANFOUNDRY_PLUGINS"] == f"{tmp_path / 'toy.py'}:/other/toy2.py"
    assert exports(ClusterConfig(env={"SCANFOUNDRY_PLUGINS": "/a.py"}), None)["SCANFOUNDRY_PLUGINS"] == "/a.py"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"sbatch": {"output": "x"}}, "output"),
        ({"sbatch": {"ntasks_per_node": 3}}, "ntasks-per-node"),
        ({"env": {"WANDB_API_KEY": "hush"}}, "secret"),
        ({"nodse": 2}, "did you mean 'nodes'?"),
    ],
)
def test_options_that_would_be_overruled_or_leak_are_refused(content: dict, said: str):
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as caught:
        check(ClusterConfig, content, "launch options")
    assert "hush" not in str(caught.value)


def test_this_machine_follows_no_scheduler():
    check_own_format("local", ClusterConfig(tasks_per_node=2, timeout_min=5, env={"A": "b"}))
    with pytest.raises(UserError, match="memory_gb"):
        check_own_format("local", ClusterConfig(memory_gb=3))


@pytest.mark.parametrize("name", recipes("cluster"))
def test_every_site_example_is_valid(name: str):
    content = yaml.safe_load(recipes("cluster")[name].read_text())
    config = check(ClusterConfig, content, name)
    assert config.timeout_min * 60 > config.signal_delay_s + 60
    assert config.gpus_per_node in (0, config.tasks_per_node)


def test_states_come_from_the_queue_or_the_accounting_or_not_at_all(monkeypatch, tmp_path):
    def play(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.states(["12", "13_0"]) == {}
    assert slurm.job_state("12") is None
    play("squeue", "echo '13_0|RUNNING'; echo '13_1|PENDING'")
    play("sacct", "echo '12|CANCELLED by 0'; echo '13_0|PENDING'")
    assert slurm.states(["12", "13_0"]) == {"12": "CANCELLED", "13_0": "RUNNING"}
    play("squeue", "exit 1")
    play("scontrol", "echo 'JobId=14 JobState=FAILED Reason=NonZeroExitCode'")
    assert slurm.states(["14"]) == {"14": "FAILED"}


def test_nothing_heavy_is_imported_by_the_shells_part():
    module = "scanfoundry.launch.cluster.after_failure"
    code = f"import sys, {module} as _; print(sys.modules.keys() & {{'torch', 'submitit', 'yaml'}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
