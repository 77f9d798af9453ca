"""`scanfoundry launch status`, `logs` and `cancel`."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from scanfoundry.configs.console import Console
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.text import printable
from scanfoundry.launch.cluster import slurm
from scanfoundry.launch.cluster.job_folder import JobRecord
from scanfoundry.launch.cluster.overview import JobStatus, alive, is_active, job_statuses, runs_in


def status_command(folder: Path, everything: bool) -> None:
    """Print a table with a line per run, and under it the last verdicts that were not the ordinary end."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "job", "state", "requeues", "step", "loss", "last line", "checkpoint"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("run", "job", "state") else "right")
    found = job_statuses(folder, everything)
    for row in found:
        table.add_row(
            row.name, row.job_id, row.state, str(row.requeues), f"{row.step or 0}/{row.steps}",
            "-" if row.loss is None else f"{row.loss:.4f}", _ago(row.seconds_since_log), str(row.checkpoint or "-"),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
    for row in found:
        if row.last_verdict and row.last_verdict != "complete":
            console.print(f"{row.job_id}: {printable(row.last_verdict)}", soft_wrap=True)


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def logs_command(folder: Path, rank: int, lines: int, follow: bool) -> None:
    """Print the end of a rank's log, and what is added until the job ends if `follow`."""
    found = runs_in(folder)
    if "" not in found:
        raise UserError(f"{folder} is a sweep; name one of its runs: {', '.join(found)}")
    job = found[""][-1]
    facts = job.record()
    if rank >= facts.tasks:
        raise UserError(f"job {facts.job_id} has {facts.tasks} ranks, 0 to {facts.tasks - 1}; there is no {rank}")
    path = Path(facts.logs) / f"{facts.job_id}_{rank}_log.out"
    if not path.exists():
        if not follow:
            raise UserError(f"job {facts.job_id} has written no log yet; it may still wait for its nodes")
        while not path.exists() and is_active(job):
            time.sleep(1)
    with open(path, errors="replace") as handle:
        sys.stdout.write("".join(deque(handle, lines)))
        looked = time.monotonic()
        while follow:
            added = handle.read()
            sys.stdout.write(added)
            sys.stdout.flush()
            if not added and time.monotonic() - looked > 5:
                follow, looked = is_active(job), time.monotonic()
            elif not added:
                time.sleep(0.3)


def cancel_command(folder: Path, grace_s: float | None) -> None:
    """End the newest job of each run for good: mark it, let running ones save, end by force what is left."""
    jobs = [all_of[-1] for all_of in runs_in(folder).values()]
    active = [job for job in jobs if is_active(job)]
    for job in active:
        facts = job.record()
        if facts.cluster == "local" and not alive(facts, job):
            continue
        job.cancel()
        _ask(facts)
    if not active:
        elsewhere = {job.record().host for job in jobs if job.record().cluster == "local"} - {os.uname().nodename}
        hint = f"; it was started on {', '.join(elsewhere)}, cancel it there" if elsewhere else ""
        print(f"no job runs or waits in {folder}{hint}")
        return
    longest = max(job.record().signal_delay_s for job in active) if grace_s is None else grace_s
    limit = time.monotonic() + longest
    while (left := [job for job in active if is_active(job)]) and time.monotonic() < limit:
        time.sleep(1)
    for job in left:
        _end(job.record())
    for row in [row for row in job_statuses(folder) if row.job_id in {job.record().job_id for job in active}]:
        print(_after_cancel(row, [job.record().job_id for job in left]))


def _after_cancel(row: JobStatus, forced: list[str | None]) -> str:
    how = "ended by force" if row.job_id in forced else "ended"
    saved = f"its newest checkpoint is step {row.checkpoint}" if row.checkpoint else "it has no checkpoint"
    return f"job {row.job_id} {how}; {saved}"


def _ask(facts: JobRecord) -> None:
    """Ask the job to save and end; one that waits for its nodes just goes."""
    if facts.cluster == "local":
        os.kill(int(facts.job_id or 0), signal.SIGTERM)
        return
    job_id = str(facts.job_id)
    if slurm.states([job_id]).get(job_id) == "RUNNING":
        subprocess.run(["scancel", "--signal=USR2", job_id], capture_output=True)
    else:
        _end(facts)


def _end(facts: JobRecord) -> None:
    if facts.cluster == "local":
        os.kill(int(facts.job_id or 0), signal.SIGTERM)
    else:
        subprocess.run(["scancel", str(facts.job_id)], capture_output=True)
