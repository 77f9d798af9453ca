"""What lies in `<run>/jobs/<stamp>/`: the one place where submission, tasks, shell and `launch status` meet.

job.json      what was submitted: cluster, job id, submitit's folder with the logs, limits
lives.jsonl   a line when a life (one start of the job) begins, and one with the verdict when it ends
ends/         how each rank of a life ended, as far as it could still say so
cancelled     is there: nobody may start this job again
code/         the package as it was at submission (of a sweep: in the parent's job folder)
Nothing here imports torch: the shell at a job's end has seconds, and `launch status` should not take any.
"""

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from scanfoundry.configs.files import write_text

Kind = Literal["complete", "final", "interrupted", "stopped", "crashed", "unreachable", "cancelled"]
EXIT = {"complete": 0, "final": 2, "interrupted": 130, "stopped": 75, "crashed": 70, "unreachable": 74, "cancelled": 75}


@dataclass(frozen=True)
class JobRecord:
    """job.json. job_id: SLURM's (`12` or `12_3` in an array), or the controller's process id on this machine."""

    cluster: str
    run_dir: str
    logs: str  # submitit's folder
    tasks: int
    steps: int
    host: str
    submitted: float  # seconds since 1970
    timeout_min: int
    signal_delay_s: int
    max_requeues: int
    max_crash_requeues: int
    code: str | None = None  # sha256 of the snapshot; None: the installed package
    job_id: str | None = None


@dataclass(frozen=True)
class End:
    """How a life ended. step: of the newest checkpoint then (0: none)."""

    kind: Kind
    step: int
    reason: str = ""


class JobFolder:
    """One submission of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_record(self, facts: JobRecord) -> None:
        """Write job.json, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "job.json", json.dumps(asdict(facts), indent=1) + "\n")

    def record(self) -> JobRecord:
        """Read job.json; keys of a later version are passed over."""
        content = json.loads((self.path / "job.json").read_text())
        return JobRecord(**{field.name: content[field.name] for field in fields(JobRecord) if field.name in content})

    @property
    def exists(self) -> bool:
        """Whether anything was submitted here."""
        return (self.path / "job.json").exists()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked for the end of this job for good."""
        return (self.path / "cancelled").exists()

    def cancel(self) -> None:
        """From now on no life of this job may begin, and none that ends is followed by another."""
        (self.path / "cancelled").touch()

    def rendezvous(self, life: str) -> Path:
        """The file through which the ranks of one life meet."""
        return self.path / "rendezvous" / f"{life}.json"

    def write_end(self, life: str, rank: int, kind: Kind, reason: str = "") -> None:
        """A rank's own word on how it ended."""
        folder = self.path / "ends" / life
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{rank}.json", json.dumps({"kind": kind, "reason": reason}))

    def ends(self, life: str) -> dict[int, dict[str, str]]:
        """What the ranks of a life said about their ends, by rank; a killed one said nothing."""
        found = {}
        for path in sorted((self.path / "ends" / life).glob("*.json")):
            found[int(path.stem)] = json.loads(path.read_text())
        return found

    def note(self, event: str, **what: Any) -> None:
        """Append to lives.jsonl."""
        with open(self.path / "lives.jsonl", "a") as handle:
            handle.write(json.dumps({"event": event, "time": time.time(), **what}) + "\n")

    def notes(self) -> list[dict[str, Any]]:
        """The lines of lives.jsonl; a half one is passed over."""
        path, found = self.path / "lives.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def past(self) -> list[End]:
        """How the lives so far ended."""
        return [End(n["kind"], n["step"], n.get("reason", "")) for n in self.notes() if n["event"] == "end"]


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint folder, which gets its name when it is complete; 0 without one.

    In the folder of a study's trial, the number of its newest snapshot: `progress/<part>-<number>-<checksum>`.
    """
    steps = [path.name.removeprefix("step-") for path in (run_dir / "checkpoints").glob("step-*")]
    steps += [path.name.split("-")[-2] for path in (run_dir / "progress").glob("*-*-*.safetensors")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def job_folders(run_dir: Path) -> list[JobFolder]:
    """The submissions of a run, oldest first."""
    return [JobFolder(path.parent) for path in sorted((run_dir / "jobs").glob("*/job.json"))]
