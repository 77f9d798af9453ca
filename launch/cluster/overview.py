"""What can be said about a launched run from its folder, and from SLURM where it is at hand."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.cluster import slurm, sweep
from scanfoundry.launch.cluster.job_folder import JobFolder, JobRecord, job_folders, newest_step

TAIL = 1 << 16  # bytes of metrics.jsonl that hold its last line for sure


@dataclass(frozen=True)
class JobStatus:
    """One line of `launch status`."""

    name: str
    job_id: str
    state: str
    requeues: int
    step: int | None
    steps: int
    loss: float | None
    seconds_since_log: float | None  # since the last line of metrics.jsonl
    checkpoint: int
    last_verdict: str


def runs_in(folder: Path) -> dict[str, list[JobFolder]]:
    """The submissions of a run, under the name '', or of each run of a sweep, by name.

    Raises:
        UserError: the folder does not exist, or holds no launched job.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name a run folder that `scanfoundry launch` printed")
    members = sweep.runs(folder)
    found = {name: job_folders(folder / name) for name in members} if members else {"": job_folders(folder)}
    if not any(found.values()):
        raise UserError(f"{folder} holds no launched job; `scanfoundry launch CONFIG run_dir={folder}` would start one")
    return {name: jobs for name, jobs in found.items() if jobs}


def job_statuses(folder: Path, everything: bool = False) -> list[JobStatus]:
    """The newest job of each run below `folder`, or every job ever submitted there."""
    jobs = [(name, job) for name, all_of in runs_in(folder).items() for job in (all_of if everything else all_of[-1:])]
    facts = [job.record() for _, job in jobs]
    known = slurm.states([one.job_id for one in facts if one.cluster == "slurm" and one.job_id])
    return [_status_of(name, job, one, known) for (name, job), one in zip(jobs, facts, strict=True)]


def is_active(job: JobFolder) -> bool:
    """Whether the job runs or waits; without SLURM at hand, as far as the folder tells."""
    facts = job.record()
    if facts.cluster == "local":
        return alive(facts, job)
    if facts.job_id is None or _ended(job):
        return False
    return slurm.states([facts.job_id]).get(facts.job_id, "UNKNOWN") in slurm.ACTIVE


def alive(facts: JobRecord, job: JobFolder) -> bool:
    """Whether the controller of a local job lives: a process of that id that names this very folder."""
    try:
        words = Path(f"/proc/{facts.job_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return facts.host == os.uname().nodename and str(job.path).encode() in words


def _ended(job: JobFolder) -> bool:
    """Whether the last word on the job was the end."""
    notes = job.notes()
    return bool(notes) and notes[-1]["event"] == "end" and notes[-1]["action"] == "end"


def _status_of(name: str, job: JobFolder, facts: JobRecord, known: dict[str, str]) -> JobStatus:
    run_dir, notes = Path(facts.run_dir), job.notes()
    last, silent = last_line(run_dir / "metrics.jsonl")
    verdicts = [note["reason"] for note in notes if note["event"] == "end"]
    lives = len({note["life"] for note in notes if note["event"] == "start"})
    return JobStatus(
        name=name or run_dir.name, job_id=facts.job_id or "-", state=_state(job, facts, known),
        requeues=max(0, lives - 1), step=last.get("step"), steps=facts.steps, loss=last.get("loss"),
        seconds_since_log=silent, checkpoint=newest_step(run_dir), last_verdict=verdicts[-1] if verdicts else "",
    )  # fmt: skip


def _state(job: JobFolder, facts: JobRecord, known: dict[str, str]) -> str:
    if facts.job_id is None:
        return "NOT SUBMITTED"
    if facts.cluster == "slurm":
        state = known.get(facts.job_id)
        if state:
            return state
    elif alive(facts, job):
        return "RUNNING"
    ends = [note for note in job.notes() if note["event"] == "end"]
    if ends and ends[-1]["action"] == "end":
        return str({"complete": "COMPLETED", "cancelled": "CANCELLED"}.get(ends[-1]["kind"], "FAILED"))
    if facts.cluster == "local":
        return "LOST" if facts.host == os.uname().nodename else f"ON {facts.host}"
    return "UNKNOWN"  # SLURM is not at hand, or has forgotten the job


def last_line(path: Path) -> tuple[dict[str, Any], float | None]:
    """The last whole record of a metrics file, and the seconds since it grew."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - TAIL))
            lines = handle.read().decode(errors="replace").splitlines()
            silent = time.time() - os.fstat(handle.fileno()).st_mtime
    except OSError:
        return {}, None
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found, silent
    return {}, silent
