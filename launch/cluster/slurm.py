"""What SLURM says about jobs, read from its own commands; every answer may be missing."""

import re
import shutil
import subprocess
from dataclasses import dataclass

ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "RESIZING", "STAGE_OUT",
          "SIGNALING", "STOPPED", "SPECIAL_EXIT", "REQUEUE_HOLD", "REQUEUE_FED"}  # fmt: skip
ENDED_BY_SLURM = {"COMPLETING", "CANCELLED", "PREEMPTED", "REQUEUED", "PENDING", "REQUEUE_HOLD", "TIMEOUT"}


@dataclass(frozen=True)
class JobState:
    """The part of `scontrol show job` that decides something."""

    state: str
    over_time: bool  # it has run longer than its limit, and SLURM is ending it for that


def run_command(*command: str, timeout_s: float = 20) -> str | None:
    """What a command of SLURM's printed; None where there is none, it failed, or its server does not answer."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def job_state(job_id: str) -> JobState | None:
    """What slurmctld knows about one job; it forgets ended ones after some minutes."""
    text = run_command("scontrol", "show", "job", job_id, "--oneliner")
    if not text:
        return None
    found = dict(re.findall(r"(\w+)=(\S*)", text.splitlines()[0]))
    return JobState(found.get("JobState", "UNKNOWN"), found.get("Reason") == "TimeLimit")


def states(job_ids: list[str]) -> dict[str, str]:
    """The state of each job that SLURM remembers: from the queue, else from the accounting."""
    found: dict[str, str] = {}
    if not job_ids:
        return found
    mine = set(job_ids)
    roots = ",".join(sorted({job_id.split("_")[0] for job_id in job_ids}))
    # -r: one line per array index, also while the array waits
    for line in (run_command("squeue", "-h", "-r", "-o", "%i|%T", "-j", roots) or "").splitlines():
        job_id, _, state = line.strip().partition("|")
        found[job_id] = state
    if mine - found.keys():
        for line in (run_command("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", roots) or "").splitlines():
            job_id, _, state = line.strip().partition("|")
            found.setdefault(job_id, state.split()[0] if state else "UNKNOWN")
    for job_id in mine - found.keys():
        answer = job_state(job_id)
        if answer is not None:
            found[job_id] = answer.state
    return {job_id: state for job_id, state in found.items() if job_id in mine}
