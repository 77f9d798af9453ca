"""`python -m scanfoundry.launch.cluster.after_failure FOLDER CODE`: what a SLURM job's shell runs last.

FOLDER is submitit's, CODE the exit code of srun. Decides whether SLURM shall start the job again, and tells it.

With `guard` in place of the code it waits beside the tasks for the TERM that SLURM sends when the limit has come: a
checkpoint that took longer than `signal_delay_s` must not end the run, and the shell itself is killed with its tasks.
"""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from scanfoundry.configs.log import shown_log
from scanfoundry.configs.text import printable
from scanfoundry.launch.cluster.job_folder import End, JobFolder, newest_step
from scanfoundry.launch.cluster.policy import Verdict, combine_ends, decide
from scanfoundry.launch.cluster.slurm import ENDED_BY_SLURM, job_state

logger = logging.getLogger(__name__)

ENDING_S = 20.0  # within which SLURM ends a job that was cancelled
TAIL = 1 << 16  # bytes of a log in which the end of a life is looked for
STEP_CANCELLED = re.compile(r"\*\*\* STEP (\d+\.\d+) ON \S+ CANCELLED AT \S+ \*\*\*")  # but not DUE TO TIME LIMIT
ENDED_BY_SRUN = "Terminating StepId="
ARRAY_INDEX = "members.json"  # in submitit's folder: the job folder of each index of an array


def write_array_index(logs: Path, folders: list[Path]) -> None:
    """Say which index of the array is which job; a single job is a list of one."""
    (logs / ARRAY_INDEX).write_text(json.dumps([str(folder) for folder in folders]))


def job_of_index(logs: Path, index: int) -> JobFolder:
    """The job folder of one index."""
    return JobFolder(Path(json.loads((logs / ARRAY_INDEX).read_text())[index]))


def judge(job: JobFolder, life: str, code: int) -> Verdict:
    """Judge the life that just ended, and write the verdict down."""
    facts = job.record()
    end = combine_ends(job.ends(life), facts.tasks, code, job.is_cancelled, newest_step(Path(facts.run_dir)))
    if end.kind == "crashed" and (step := cancelled_step(job)):
        reason = f"`scancel {step}` ended its step, not the job; `scanfoundry launch cancel` ends it for good"
        end = End(end.kind, end.step, reason)
    verdict = decide(job.past(), end, facts)
    with contextlib.suppress(OSError):  # a full disk must not keep the verdict from SLURM
        job.note("end", life=life, code=code, kind=end.kind, step=end.step, reason=verdict.reason,
                 action=verdict.action)  # fmt: skip
    return verdict


def cancelled_step(job: JobFolder) -> str:
    """The step of the life that ended, `12.0`, if somebody cancelled it, by what SLURM wrote into the log; else ''.

    SLURM ends such a step by KILL, as the system does a process when memory runs out. After a lost rank it writes the
    same line, if any, but only behind the one on which srun ends the others.
    """
    facts = job.record()
    for line in _lines_of_this_life(Path(facts.logs) / f"{facts.job_id}_0_log.out", f"job {facts.job_id}: "):
        if ENDED_BY_SRUN in line:
            return ""
        if found := STEP_CANCELLED.search(line):
            return found[1]
    return ""


def _lines_of_this_life(log: Path, verdict: str) -> list[str]:
    """The end of a log, from the line on that the shell wrote after the life before (`_log`)."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - TAIL))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    last = max((number for number, line in enumerate(lines) if verdict in line), default=-1)
    return lines[last + 1 :]


@shown_log()
def main() -> int:
    """Judge, and requeue where the verdict is so; the exit code is the job's."""
    index, number = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ["SLURM_JOB_ID"]
    job = job_of_index(Path(sys.argv[1]), int(index or 0))
    if index is not None:
        number = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}"  # scancel does nothing to an index by its own id
    if sys.argv[2] == "guard":
        return wait_for_time_limit(job, number)
    outside = job_state(number)
    if outside is not None and outside.state in ENDED_BY_SLURM:
        # scancel, a preemption, a requeue by hand: SLURM has decided already; the time limit is the guard's.
        _log(number, f"ended from outside ({outside.state.lower()})")
        return int(sys.argv[2])
    return apply_verdict(job, number, int(sys.argv[2]))


def wait_for_time_limit(job: JobFolder, number: str) -> int:
    """Wait for TERM; if the time limit sent it, ask for the next life within the seconds before the KILL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGTERM})
    outside = job_state(number)
    if outside is None or not outside.over_time or job.is_cancelled:
        return 0
    _log(number, "the time limit came before all was saved; a longer signal_delay_s would lose less")
    return apply_verdict(job, number, 128 + signal.SIGTERM)


def apply_verdict(job: JobFolder, number: str, code: int) -> int:
    """Judge the life that ended with `code`, and do what the verdict says; gives the job's exit code."""
    life = f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT') or 0}"
    verdict = judge(job, life, code)
    _log(number, verdict.reason)
    if verdict.action == "requeue":
        asked = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True)
        if asked.returncode:
            _log(number, f"SLURM would not requeue it: {asked.stderr.strip()}")
        elif verdict.wait_s:
            start = f"StartTime=now+{verdict.wait_s}"
            subprocess.run(["scontrol", "update", f"JobId={number}", start], capture_output=True)
        return code or 1
    if job.is_cancelled:
        subprocess.run(["scancel", number], capture_output=True)
        time.sleep(ENDING_S)  # a shell that ends first would leave the job COMPLETED
    return verdict.code


def _log(number: str, text: str) -> None:
    logger.error("job %s: %s", number, printable(text))


if __name__ == "__main__":
    sys.exit(main())
