"""`python -m scanforge.launch.after_failure FOLDER CODE`: the last thing a SLURM job's shell does in each life.

FOLDER is submitit's, CODE the exit code of srun. Decides whether SLURM shall start the job again, and tells it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from scanforge.launch.job_folder import JobFolder, newest_step
from scanforge.launch.policy import Verdict, decide, sum_up
from scanforge.launch.slurm import ENDED_FROM_OUTSIDE, shown

MEMBERS = "members.json"  # in submitit's folder: the job folder of each index of an array


def write_members(logs: Path, folders: list[Path]) -> None:
    """Say which index of the array is which job; a single job is a list of one."""
    (logs / MEMBERS).write_text(json.dumps([str(folder) for folder in folders]))


def member(logs: Path, index: int) -> JobFolder:
    """The job folder of one index."""
    return JobFolder(Path(json.loads((logs / MEMBERS).read_text())[index]))


def conclude(job: JobFolder, life: str, code: int) -> Verdict:
    """Judge the life that just ended, and write the verdict down."""
    facts = job.facts()
    end = sum_up(job.ends(life), facts.tasks, code, job.is_cancelled, newest_step(Path(facts.run_dir)))
    verdict = decide(job.past(), end, facts)
    job.note("end", life=life, code=code, kind=end.kind, step=end.step, reason=verdict.reason, action=verdict.action)
    return verdict


def main() -> int:
    """Judge, and requeue where the verdict is so; the exit code is the job's."""
    logs, code = Path(sys.argv[1]), int(sys.argv[2])
    number = os.environ["SLURM_JOB_ID"]
    job = member(logs, int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")))
    outside = shown(number)
    if outside is not None and outside.state in ENDED_FROM_OUTSIDE and not outside.over_time:
        # scancel, a preemption, a requeue by hand: SLURM has decided already whether there is another life.
        print(f"scanforge: job {number} was ended from outside ({outside.state.lower()})", file=sys.stderr, flush=True)
        return code
    verdict = conclude(job, f"{number}-{os.environ.get('SLURM_RESTART_COUNT') or 0}", code)
    print(f"scanforge: job {number}: {verdict.reason}", file=sys.stderr, flush=True)
    if verdict.action == "requeue":
        asked = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True)
        if asked.returncode:
            print(f"scanforge: SLURM would not requeue the job: {asked.stderr.strip()}", file=sys.stderr, flush=True)
        return code or 1
    if job.is_cancelled:
        subprocess.run(["scancel", number], capture_output=True)
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
