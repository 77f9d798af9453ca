"""The one place that knows submitit: runs as jobs on SLURM or as processes on this machine.

submitit's own handler of the preemption signal is not used: it counts a signal after 80% of the time limit, or ten
minutes before it, against a number of timeouts, and with limits below ten minutes counts every one; it also cannot
tell a crash from a mistake. The task's exit code and `after_failure` decide instead, in one place for all causes.
"""

import contextlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.local.local import LocalJob
from submitit.slurm.slurm import _make_sbatch_string as sbatch_string

from scanfoundry.launch.cluster.after_failure import write_array_index
from scanfoundry.launch.cluster.environment import export_lines, exports
from scanfoundry.launch.cluster.job_folder import JobFolder
from scanfoundry.launch.cluster.options import ClusterConfig
from scanfoundry.launch.cluster.rank_main import RankInfo, run_rank
from scanfoundry.launch.cluster.trial_main import run_trial_task

PYTHON = shlex.quote(sys.executable)


class PretrainJob:
    """What submitit pickles and calls in every task; started again, it continues the same run folder."""

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        self.content, self.folder = content, str(folder)

    def __call__(self) -> dict[str, Any]:
        """Pre-train as this task's rank."""
        task = submitit.JobEnvironment()
        info = RankInfo(
            rank=task.global_rank, size=task.num_tasks, local_rank=task.local_rank,
            local_size=task.num_tasks // task.num_nodes,
            main_host="127.0.0.1" if task.cluster == "local" else task.hostnames[0], life=_life(),
        )  # fmt: skip
        return run_rank(self.content, JobFolder(Path(self.folder)), info)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """For a signal in the moment between submitit's handler and ours: nothing was begun yet."""
        return submitit.helpers.DelayedSubmission(PretrainJob(self.content, Path(self.folder)))


class TrialJob:
    """The same for one trial of a fine-tuning study: a single process."""

    def __init__(self, content: dict[str, Any], trial: str, folder: Path) -> None:
        self.content, self.trial, self.folder = content, trial, str(folder)

    def __call__(self) -> dict[str, Any]:
        """Run the trial, or what is left of it."""
        return run_trial_task(self.content, self.trial, JobFolder(Path(self.folder)), _life())

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """As that of a `PretrainJob`."""
        return submitit.helpers.DelayedSubmission(TrialJob(self.content, self.trial, Path(self.folder)))


def _life() -> str:
    """The name of this start of the job, the same for all its tasks."""
    task = submitit.JobEnvironment()
    number = os.environ.get("SLURM_JOB_ID") or task.job_id
    restart = os.environ.get("SCANFOUNDRY_LIFE" if task.cluster == "local" else "SLURM_RESTART_COUNT") or "0"
    return f"{number}-{restart}"


class _Local(submitit.LocalExecutor):
    """submitit's files and logs, under our controller, which ends and restarts a life as SLURM's jobs are."""

    def __init__(self, logs: Path, job: JobFolder, config: ClusterConfig, code: Path | None) -> None:
        super().__init__(logs)
        self._job, self._config, self._code = job, config, code

    def _submit_command(self, command: str) -> Any:
        config = self._config
        command = " && ".join([*config.setup, f"exec {command}"])
        with open(self._job.path / "controller.log", "a") as log:  # our own output may be a pipe that somebody reads
            process = subprocess.Popen(
                [sys.executable, "-m", "scanfoundry.launch.cluster.local_controller", str(self._job.path), command],
                env={**os.environ, **exports(config, self._code), "SUBMITIT_EXECUTOR": "local",
                     "CUDA_VISIBLE_DEVICES": ",".join(str(k) for k in range(config.gpus_per_node))},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C reaches it through us, once
            )  # fmt: skip
        return LocalJob(self.folder, str(process.pid), list(range(config.tasks)), process)

    def _num_tasks(self) -> int:
        return self._config.tasks


def submit(cluster: str, contents: Sequence[dict[str, Any]], folders: Sequence[JobFolder], config: ClusterConfig,
           logs: Path, code: Path | None, trials: Sequence[str] = ()) -> list[str]:  # fmt: skip
    """Submit one job per configuration; on SLURM several are one array.

    Args:
        cluster: 'slurm' or 'local'.
        contents: resolved configurations.
        folders: their job folders, whose records are written already.
        config: what each job asks for.
        logs: submitit's folder.
        code: the folder with the copy of the code that runs; None: the installed package.
        trials: of a fine-tuning study, the trial that each job runs; a job without one is a pre-training.

    Returns:
        The job ids, which are written into the job folders too.

    Raises:
        OSError, RuntimeError: the scheduler refuses.
    """
    calls: list[Callable[[], Any]]
    if trials:
        each = zip(contents, trials, folders, strict=True)
        calls = [TrialJob(content, trial, folder.path) for content, trial, folder in each]
    else:
        calls = [PretrainJob(content, folder.path) for content, folder in zip(contents, folders, strict=True)]
    write_array_index(logs, [folder.path for folder in folders])
    jobs: list[submitit.Job[Any]]
    if cluster == "local":
        jobs = [_Local(logs, job, config, code).submit(call) for job, call in zip(folders, calls, strict=True)]
    else:
        executor = submitit.SlurmExecutor(logs, max_num_timeout=1_000_000, python=config.python)
        executor.update_parameters(**_slurm(config, logs, code))
        # The variables of a job that we may be in are not those of the new one; what sbatch says comes in its error.
        with submitit.helpers.clean_env(), contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.submit_array(calls)
    for folder, job in zip(folders, jobs, strict=True):
        folder.write_record(replace(folder.record(), job_id=job.job_id))
    return [job.job_id for job in jobs]


def script(config: ClusterConfig, logs: Path, code: Path | None, jobs: int) -> str:
    """The sbatch script that `submit` would hand to SLURM, word for word."""
    command = f"{config.python or PYTHON} -u -m submitit.core._submit {shlex.quote(str(logs))}"
    several = {"map_count": jobs} if jobs > 1 else {}
    asked = {**_slurm(config, logs, code), **several}
    return str(sbatch_string(command=command, folder=logs, **asked))


def _slurm(config: ClusterConfig, logs: Path, code: Path | None) -> dict[str, Any]:
    after = f"{PYTHON} -m scanfoundry.launch.cluster.after_failure {shlex.quote(str(logs))}"
    asked: dict[str, Any] = {
        "job_name": "scanfoundry", "nodes": config.nodes, "ntasks_per_node": config.tasks_per_node,
        "cpus_per_task": config.cpus_per_task, "time": config.timeout_min, "signal_delay_s": config.signal_delay_s,
        "partition": config.partition, "account": config.account, "qos": config.qos,
        "constraint": config.constraint, "gpus_per_node": config.gpus_per_node or None,
        "mem": f"{int(config.memory_gb * 1024)}M" if config.memory_gb else None,
        "array_parallelism": config.array_parallelism, "stderr_to_stdout": True,
        # The shell waits for srun after a TERM, and judges what came of it.
        "setup": [*export_lines(exports(config, code)), *config.setup, "trap : TERM",
                  f"{after} guard & guard=$!; disown",  # unowned, it ends without a line of the shell
                  f"judge() {{ code=$?; trap - EXIT; kill -KILL $guard; {after} $code; exit $?; }}",
                  "trap judge EXIT"],
        # One lost rank ends all. srun does not take cpus-per-task over from sbatch since SLURM 22.05.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={config.cpus_per_task}"],
        "additional_parameters": {"requeue": True, "export": "ALL",
                                  **{key: value for key, value in config.sbatch.items() if value is not False}},
    }  # fmt: skip
    return {key: value for key, value in asked.items() if value is not None}
